"""The operators that stand in a network's place: what is before the last norm, and what follows.

An operator is ``finish(*features(x))``. The search needs no neighbour's output, only its scalar product with the
output's gradient, and with a linear norm at the end that product is a few sums over ``features``: :meth:`probe`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightkernels._core.spec import Layout, is_dense
from lightkernels.compress.operators_layers import DepthwiseConv2d, GroupedConv2d, Shuffle, plain
from lightkernels.nn import Multiception2d, MultiDepthwiseConv2d, RSDC2d

Features = tuple[Tensor, ...]
_LAYOUTS: tuple[Layout, ...] = ("nchw", "nhwc")


class Gradient:
    """The gradient of an output, and in each order of channels that a probe asked for."""

    def __init__(self, g: Tensor) -> None:
        self.g = g
        self._unshuffled: dict[int, Tensor] = {}

    def unshuffled(self, groups: int) -> Tensor:
        channels = self.g.shape[1]
        if groups in (1, channels):
            return self.g
        if groups not in self._unshuffled:
            self._unshuffled[groups] = self.g.unflatten(1, (channels // groups, groups)).transpose(1, 2).flatten(1, 2)
        return self._unshuffled[groups]


def product(a: Tensor, b: Tensor) -> Tensor:
    """The scalar product of two maps; 16-bit types are summed in float32."""
    if a.dtype.itemsize < 4 or b.dtype.itemsize < 4:
        a, b = a.float(), b.float()
    if a.stride() != b.stride() or not any(is_dense(a.shape, a.stride(), layout) for layout in _LAYOUTS):
        return (a * b).sum()
    # Of dense tensors of equal strides, whatever these are: the elements in the order of memory.
    size = (a.numel(),)
    return torch.dot(a.as_strided(size, (1,)), b.as_strided(size, (1,)))


def norm_product(norm: nn.Module, z: Tensor, g: Tensor) -> Tensor:
    """``product(norm(z), g)`` from sums over the channels; running statistics are read in evaluation, never written."""
    if type(norm) is not nn.BatchNorm2d or g.dtype != z.dtype or z.dtype.itemsize < 4:
        return product(norm(z), g)
    training = norm.training or norm.running_mean is None
    mean = inverse = None
    if training:
        mean, second = torch.batch_norm_update_stats(z, None, None, 0.0)
        inverse = (second + norm.eps).rsqrt()
    _, scale, shift = torch.ops.aten.native_batch_norm_backward(
        g,
        z,
        norm.weight,
        None if training else norm.running_mean,
        None if training else norm.running_var,
        mean,
        inverse,
        training,
        norm.eps,
        [False, True, True],
    )
    if norm.weight is None:
        return scale.sum()
    return torch.dot(norm.weight, scale) + torch.dot(norm.bias, shift)


class Operator(nn.Module):
    """``finish(*features(x))``. `entry` is the depthwise layer that `features` begins with, or None."""

    entry: DepthwiseConv2d | None = None

    def features(self, x: Tensor, first: Tensor | None = None) -> Features:
        """What the last norm reads, and what else the output needs; `first` is ``entry(x)`` if that is known."""
        raise NotImplementedError

    def finish(self, *features: Tensor) -> Tensor:
        raise NotImplementedError

    def probe(self, features: Features, g: Gradient) -> Tensor:
        """The scalar product of ``finish(*features)`` and the gradient."""
        return product(self.finish(*features), g.g)

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(*self.features(x))

    def plain(self) -> nn.Module:
        """This operator by torch's layers alone: see :func:`lightkernels.compress.operators.plain`."""
        return plain(self)


class Normed(Operator):
    """Operators that end in norm, activation if wanted, shuffle."""

    def __init__(self, channels: int, groups: int, act: bool, affine: bool) -> None:
        super().__init__()
        self.groups, self.act = groups, act
        self._end = (channels, affine)

    def _close(self) -> None:
        """The last children, so that they are in the order of execution."""
        channels, affine = self._end
        self.norm = nn.BatchNorm2d(channels, affine=affine)
        self.shuffle: nn.Module = nn.Identity() if self.groups in (1, channels) else Shuffle(self.groups)

    def finish(self, *features: Tensor) -> Tensor:
        z: Tensor = self.norm(features[0])
        y: Tensor = self.shuffle(F.relu(z) if self.act else z)
        return y

    def probe(self, features: Features, g: Gradient) -> Tensor:
        grad = g.unshuffled(self.groups)
        if not self.act:
            return norm_product(self.norm, features[0], grad)
        return product(F.relu_(self.norm(features[0])), grad)


class Convolution(Normed):
    """`conv`, `norm`, ReLU if wanted, shuffle; the convolution is dense, grouped or RSDC."""

    def __init__(self, conv: nn.Module, channels: int, groups: int, act: bool, affine: bool) -> None:
        super().__init__(channels, groups, act, affine)
        self.conv = conv
        self._close()

    def features(self, x: Tensor, first: Tensor | None = None) -> Features:
        return (self.conv(x),)


class CReLUConvolution(Operator):
    """A 3x3 convolution to half of the channels, norm, both rectified signs of it, shuffle of twice the groups.

    Shang et al. 2016. Shuffling ``2 * groups`` sends both signs of each group to every group of the next layer.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, groups: int, affine: bool) -> None:
        super().__init__()
        self.conv = GroupedConv2d(in_channels, out_channels // 2, 3, stride, groups)
        self.norm = nn.BatchNorm2d(out_channels // 2, affine=affine)
        # Without groups there is nothing to mix, and a shuffle into single channels is none.
        mixed = groups > 1 and 2 * groups != out_channels
        self.mixed = 2 * groups if mixed else 1
        self.shuffle: nn.Module = Shuffle(2 * groups) if mixed else nn.Identity()

    def features(self, x: Tensor, first: Tensor | None = None) -> Features:
        return (self.conv(x),)

    def finish(self, *features: Tensor) -> Tensor:
        z = self.norm(features[0])
        y: Tensor = self.shuffle(torch.cat((F.relu(z), F.relu(-z)), 1))
        return y

    def probe(self, features: Features, g: Gradient) -> Tensor:
        z = self.norm(features[0])
        grad = g.unshuffled(self.mixed)
        plus, minus = grad.chunk(2, 1)
        # max(z, 0) p + max(-z, 0) m is z times p or -m, whichever side z is on.
        return product(z, torch.where(z > 0, plus, -minus))


class Separable(Normed):
    """Depthwise convolution, 1x1 convolution, norm, ReLU if wanted, shuffle; nothing between the two."""

    def __init__(
        self,
        depthwise: DepthwiseConv2d | MultiDepthwiseConv2d,
        in_channels: int,
        out_channels: int,
        groups: int,
        act: bool,
        affine: bool,
    ) -> None:
        super().__init__(out_channels, groups, act, affine)
        self.depthwise = depthwise
        self.pointwise = GroupedConv2d(in_channels, out_channels, 1, 1, groups)
        self._close()

    @property
    def entry(self) -> DepthwiseConv2d | None:  # type: ignore[override]
        return self.depthwise if isinstance(self.depthwise, DepthwiseConv2d) else None

    def features(self, x: Tensor, first: Tensor | None = None) -> Features:
        return (self.pointwise(self.depthwise(x) if first is None else first),)


class ResidualSeparable(Operator):
    """Two separable units: ``h = x + unit1(x)``, then ``unit2(h)``, plus ``h`` where the shapes are equal."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        dilation: int,
        groups: int,
        act: bool,
        affine: bool,
    ) -> None:
        super().__init__()
        first = DepthwiseConv2d(in_channels, kernel_size, 1, dilation)
        second = DepthwiseConv2d(in_channels, kernel_size, stride, dilation)
        self.unit1 = Separable(first, in_channels, in_channels, groups, True, True)
        self.unit2 = Separable(second, in_channels, out_channels, groups, act, affine)
        self.residual = in_channels == out_channels and stride == 1

    @property
    def entry(self) -> DepthwiseConv2d | None:  # type: ignore[override]
        return self.unit1.entry

    def features(self, x: Tensor, first: Tensor | None = None) -> Features:
        h = x + self.unit1.finish(*self.unit1.features(x, first))
        (z,) = self.unit2.features(h)
        return (z, h) if self.residual else (z,)

    def finish(self, *features: Tensor) -> Tensor:
        y = self.unit2.finish(features[0])
        return y + features[1] if self.residual else y

    def probe(self, features: Features, g: Gradient) -> Tensor:
        value = self.unit2.probe(features[:1], g)
        return value + product(features[1], g.g) if self.residual else value


class Fire(Normed):
    """1x1 convolution to few channels, norm, ReLU; a 1x1 and a 3x3 convolution of it, concatenated; norm.

    Iandola et al. 2016, with ``squeeze = min(out_channels / 4, 64)``.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, squeeze: int, act: bool, affine: bool) -> None:
        super().__init__(out_channels, 1, act, affine)
        self.squeeze = GroupedConv2d(in_channels, squeeze, 1)
        self.squeeze_norm = nn.BatchNorm2d(squeeze)
        self.expand1 = GroupedConv2d(squeeze, out_channels // 2, 1, stride)
        self.expand3 = GroupedConv2d(squeeze, out_channels // 2, 3, stride)
        self._close()

    def features(self, x: Tensor, first: Tensor | None = None) -> Features:
        narrow = F.relu(self.squeeze_norm(self.squeeze(x)))
        return (torch.cat((self.expand1(narrow), self.expand3(narrow)), 1),)


class Multiception(Normed):
    """The Multiception layer: parallel depthwise convolutions, norm, 1x1 convolution with bias; then as all others."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, act: bool, affine: bool) -> None:
        super().__init__(out_channels, 1, act, affine)
        layer = Multiception2d(in_channels, out_channels, stride=stride)
        self.depthwise, self.norm1, self.pointwise = layer.depthwise, layer.norm1, layer.pointwise
        self._close()

    def features(self, x: Tensor, first: Tensor | None = None) -> Features:
        assert self.norm1 is not None
        return (self.pointwise(self.norm1(self.depthwise(x))),)


class Skip(Operator):
    """The identity."""

    def features(self, x: Tensor, first: Tensor | None = None) -> Features:
        return (x,)

    def finish(self, *features: Tensor) -> Tensor:
        return features[0]


class Pool(Operator):
    """3x3 pooling; averages count the pixels of the image alone."""

    def __init__(self, kind: str, stride: int) -> None:
        super().__init__()
        average = nn.AvgPool2d(3, stride, 1, count_include_pad=False)
        self.pool: nn.Module = average if kind == "avg" else nn.MaxPool2d(3, stride, 1)

    def features(self, x: Tensor, first: Tensor | None = None) -> Features:
        return (self.pool(x),)

    def finish(self, *features: Tensor) -> Tensor:
        return features[0]


def rsdc(in_channels: int, out_channels: int, kernel_size: int, stride: int, groups: int) -> RSDC2d:
    """Nine cells of a larger window; drawn from the shape, so that it is the same layer wherever it is built."""
    seed = 0
    for value in (in_channels, out_channels, kernel_size, stride, groups):
        seed = (seed * 1_000_003 + value) % 2**31
    generator = torch.Generator("cpu").manual_seed(seed)
    layer = RSDC2d(
        in_channels, out_channels, kernel_size, stride, groups=groups, bias=False, scope="group", generator=generator
    )
    layer.generator = None
    return layer

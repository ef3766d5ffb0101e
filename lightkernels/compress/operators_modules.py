"""The operators that stand in a network's place: what is before the last norm, and what follows.

An operator is ``finish(*features(x))``. The search needs no neighbour's output, only its scalar product with the
output's gradient, and with a linear norm at the end that product is a few sums over ``features``: :meth:`probe`.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightkernels.compress.channel_norm import Act, channel_norm, is_single, known_product, mixed_norm
from lightkernels.compress.operators_layers import DepthwiseConv2d, GroupedConv2d, Shuffle, plain
from lightkernels.compress.operators_mixed import can_mix, mixed_norm_act
from lightkernels.compress.operators_passes import (
    Again,
    Own,
    Repeats,
    Value,
    affine,
    convolved,
    current,
    is_quick,
    joined,
    norm_act,
    product,
    recomputed,
    running_as,
    sums,
    wide,
)
from lightkernels.nn import Multiception2d, MultiDepthwiseConv2d, RSDC2d

Features = tuple[Tensor, ...]


class Gradient:
    """The gradient of an output, also in each order of channels that a probe asked for."""

    def __init__(self, g: Tensor) -> None:
        self.g = g
        self._unshuffled: dict[int, Tensor] = {}
        self._sums: Tensor | None = None
        self._signs: dict[int, tuple[Tensor, Tensor]] = {}

    def unshuffled(self, groups: int) -> Tensor:
        """With the channels in the order that they have before a shuffle of so many groups."""
        channels = self.g.shape[1]
        if groups in (1, channels):
            return self.g
        if groups not in self._unshuffled:
            self._unshuffled[groups] = F.channel_shuffle(self.g, channels // groups)
        return self._unshuffled[groups]

    def sums(self, groups: int) -> Tensor:
        """Of each channel, in the same order and in float64."""
        if self._sums is None:
            self._sums = wide(self.g.sum((2, 3))).sum(0)
        return self._sums if groups == 1 else self._sums.view(-1, groups).t().flatten()

    def signs(self, groups: int) -> tuple[Tensor, Tensor]:
        """The sum of the halves that belong to both rectified signs, and the half of the negative one."""
        if groups not in self._signs:
            plus, minus = self.unshuffled(groups).chunk(2, 1)
            self._signs[groups] = plus + minus, minus.clone(memory_format=torch.preserve_format)
        return self._signs[groups]


def norm_product(norm: nn.Module, z: Tensor, g: Gradient, groups: int = 1) -> Value:
    """The scalar product of ``shuffle(norm(z))`` and the gradient; running statistics are read in evaluation only."""
    if not is_quick(norm, z) or g.g.dtype != z.dtype:
        return product(norm(z), g.unshuffled(groups))
    assert isinstance(norm, nn.BatchNorm2d)
    if not norm.training and norm.running_mean is not None and norm.running_var is not None:
        mean, variance = wide(norm.running_mean), wide(norm.running_var)
    else:
        kernels = channel_norm(z, "none", 1 if groups == z.shape[1] else groups, norm)
        if kernels is not None:
            found: Value = kernels.product(norm, g.g)
            return found
        mean, variance = sums(z)
    scale, bias = affine(norm, variance)
    products = wide((z * g.unshuffled(groups)).sum((2, 3))).sum(0)
    return torch.dot(scale, products) + torch.dot(bias - mean * scale, g.sums(groups))


def sums_serve(conv: GroupedConv2d, norm: nn.Module, x: Tensor, g: Tensor) -> bool:
    """Whether a neighbour may have sums over its convolution's outputs in place of these: nobody sees them."""
    low = current().low
    if conv._forward_hooks or conv._forward_pre_hooks or (low is not None and low.pays(conv, x)):
        return False
    if type(norm) is not nn.BatchNorm2d or not norm.training or not is_single(norm):
        return False
    usual = g.is_cpu and g.dtype is torch.float32 and not torch.is_autocast_enabled("cpu")
    return usual and current().kind == "neighbour"


class Operator(nn.Module):
    """``finish(*features(x))``. `entry` is the depthwise layer that `features` begins with, or None."""

    entry: DepthwiseConv2d | None = None

    def features(self, x: Tensor, first: Tensor | None = None) -> Features:
        """What the last norm reads, and what else the output needs; `first` is ``entry(x)`` if that is known."""
        raise NotImplementedError

    def finish(self, *features: Tensor) -> Tensor:
        raise NotImplementedError

    def probe(self, features: Features, g: Gradient) -> Value:
        """The scalar product of ``finish(*features)`` and the gradient."""
        return product(self.finish(*features), g.g)

    def value(self, x: Tensor, g: Gradient, first: Tensor | None = None) -> Value:
        """``probe(features(x, first), g)``, for neighbours, which keep no features."""
        return self.probe(self.features(x, first), g)

    def active(self, x: Tensor, own: Own | None = None, probed: bool = True) -> tuple[Tensor, Features]:
        """The output, of which backward keeps little, and the features; `own` is for the output's last part.

        `probed`: whether the features are wanted if `own` is not taken.
        """
        with running_as("active"):
            features = self.features(x)
        with running_as("active", own):
            return self.finish(*features), features

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
        return self.end(features[0])

    def end(self, z: Tensor, base: Tensor | None = None, again: Again | None = None) -> Tensor:
        """What follows the convolutions, plus base, which `again` can make once more."""
        act: Act = "relu" if self.act else "none"
        return norm_act(self.norm, z, act, self.shuffle, base=base, again=again)

    def probe(self, features: Features, g: Gradient) -> Value:
        if not self.act:
            return norm_product(self.norm, features[0], g, self.groups)
        return product(norm_act(self.norm, features[0], "relu"), g.unshuffled(self.groups))


class Convolution(Normed):
    """`conv`, `norm`, ReLU if wanted, shuffle; the convolution is dense, grouped or RSDC."""

    def __init__(self, conv: nn.Module, channels: int, groups: int, act: bool, affine: bool) -> None:
        super().__init__(channels, groups, act, affine)
        self.conv = conv
        self._close()

    def features(self, x: Tensor, first: Tensor | None = None) -> Features:
        return (convolved(self.conv, x),)

    def value(self, x: Tensor, g: Gradient, first: Tensor | None = None) -> Value:
        """Where sums over the convolution's outputs can be taken as these are made, they are not stored."""
        if not self.act and isinstance(self.conv, GroupedConv2d) and sums_serve(self.conv, self.norm, x, g.g):
            groups = self.groups if isinstance(self.shuffle, Shuffle) else 1
            found = self.conv.moments(x, g.g, groups)
            if found is not None:
                return known_product(self.norm, found)
        return super().value(x, g, first)


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
        return (convolved(self.conv, x),)

    def finish(self, *features: Tensor) -> Tensor:
        return norm_act(self.norm, features[0], "crelu", self.shuffle)

    def probe(self, features: Features, g: Gradient) -> Value:
        (z,), norm = features, self.norm
        kernels = channel_norm(z, "crelu", self.mixed, norm) if norm.training and g.g.dtype == z.dtype else None
        if kernels is not None:
            found: Value = kernels.product(norm, g.g)
            return found
        # max(-t, 0) is max(t, 0) - t: one rectified map is enough.
        both, minus = g.signs(self.mixed)
        t = norm_act(norm, z)
        return product(F.relu(t), both) - product(t, minus)


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
        if first is not None:
            return (self.pointwise(first),)
        return (recomputed(self.depthwise, self.pointwise, x),)

    def active(self, x: Tensor, own: Own | None = None, probed: bool = True) -> tuple[Tensor, Features]:
        wanted = probed and (own is None or not self.norm.affine)
        if not wanted and can_mix(self.pointwise, self.norm, x):
            with running_as("active", own):
                return self.at_once(x), ()
        return super().active(x, own, probed)

    def at_once(
        self, x: Tensor, repeats: Repeats | None = None, base: Tensor | None = None, again: Again | None = None
    ) -> Tensor:
        """``end`` of the features of the active operator, of which backward keeps the depthwise output alone."""
        with contextlib.nullcontext() if again is None else again.left_out():
            d = self.depthwise(x)
        how: Any = ("relu" if self.act else "none", self.shuffle, repeats, base, again)
        y = mixed_norm_act(self.pointwise, self.norm, d, *how)
        return norm_act(self.norm, self.pointwise(d), *how) if y is None else y

    def mixed(self, d: Tensor) -> Any:
        """The norm in training of what the 1x1 convolution makes of ``d``, where that need not be stored."""
        norm = self.norm
        if type(norm) is not nn.BatchNorm2d or not norm.training or d.numel() == d.shape[1]:
            return None
        groups = self.shuffle.groups if isinstance(self.shuffle, Shuffle) else 1
        return mixed_norm(self.pointwise, norm, d, "relu" if self.act else "none", groups)

    def value(self, x: Tensor, g: Gradient, first: Tensor | None = None) -> Value:
        d = self.depthwise(x) if first is None else first
        kernels = None if self.act or g.g.dtype is not torch.float32 else self.mixed(d)
        if kernels is None:
            return super().value(x, g, d)
        found: Value = kernels.product(self.norm, g.g)
        return found


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
        return self._run(x, first)[0]

    def _run(self, x: Tensor, first: Tensor | None = None) -> tuple[Features, Again | None]:
        """The features, and what makes h again where backward shall not keep it."""
        unit = self.unit1
        repeats: Repeats = []
        (z,) = unit.features(x, first)
        h = norm_act(unit.norm, z, "relu", unit.shuffle, repeats, x)
        again = Again(h, repeats[0]) if repeats else None
        with contextlib.nullcontext() if again is None else again.left_out():
            z = recomputed(self.unit2.depthwise, self.unit2.pointwise, h, again)
        return (z, h) if self.residual else (z,), again

    def active(self, x: Tensor, own: Own | None = None, probed: bool = True) -> tuple[Tensor, Features]:
        units = self.unit1, self.unit2
        wanted = probed and (own is None or not self.unit2.norm.affine)
        if not wanted and all(can_mix(unit.pointwise, unit.norm, x) for unit in units):
            return self._at_once(x, own), ()
        with running_as("active"):
            features, again = self._run(x)
        with running_as("active", own):
            h = features[1] if self.residual else None
            return self.unit2.end(features[0], h, again if self.residual else None), features

    def _at_once(self, x: Tensor, own: Own | None) -> Tensor:
        repeats: Repeats = []
        with running_as("active"):
            h = self.unit1.at_once(x, repeats, x)
        again = Again(h, repeats[0]) if repeats else None
        with running_as("active", own):
            return self.unit2.at_once(h, None, h if self.residual else None, again)

    def value(self, x: Tensor, g: Gradient, first: Tensor | None = None) -> Value:
        d = self.unit1.depthwise(x) if first is None else first
        kernels = self.unit1.mixed(d)
        if kernels is None:
            return super().value(x, g, d)
        h = kernels.forward(self.unit1.norm, x)[0]
        value = self.unit2.value(h, g)
        return value + product(h, g.g) if self.residual else value

    def finish(self, *features: Tensor) -> Tensor:
        return self.unit2.end(features[0], features[1] if self.residual else None)

    def probe(self, features: Features, g: Gradient) -> Value:
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
        repeats: Repeats = []
        narrow = norm_act(self.squeeze_norm, self.squeeze(x), "relu", None, repeats)
        with Again(narrow, repeats[0]).left_out() if repeats else contextlib.nullcontext():
            return (joined(self.expand1(narrow), self.expand3(narrow)),)

    def value(self, x: Tensor, g: Gradient, first: Tensor | None = None) -> Value:
        """The two convolutions' shares of the product one by one, so that their outputs need not be joined."""
        norm = self.norm
        if self.act or not norm.training or x.dtype is not torch.float32 or g.g.dtype is not torch.float32:
            return super().value(x, g, first)
        narrow = norm_act(self.squeeze_norm, self.squeeze(x), "relu")
        parts = self.expand1(narrow), self.expand3(narrow)
        kernels = [channel_norm(z, norm=norm, planes=norm.num_features) for z in parts]
        if None in kernels:
            return norm_product(norm, joined(*parts), g)
        total: Value = kernels[0].product(norm, g.g) + kernels[1].product(norm, g.g, parts[0].shape[1])
        return total


class Multiception(Normed):
    """The Multiception layer: parallel depthwise convolutions, norm, 1x1 convolution with bias; then as all others."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, act: bool, affine: bool) -> None:
        super().__init__(out_channels, 1, act, affine)
        layer = Multiception2d(in_channels, out_channels, stride=stride)
        self.depthwise, self.norm1, self.pointwise = layer.depthwise, layer.norm1, layer.pointwise
        self._close()

    def features(self, x: Tensor, first: Tensor | None = None) -> Features:
        assert self.norm1 is not None
        return (self.pointwise(norm_act(self.norm1, self.depthwise(x))),)


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

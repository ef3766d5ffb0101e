"""Multi-kernel depthwise convolution: contract and public function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightkernels._core import backends
from lightkernels._core.op import BilinearOp
from lightkernels._core.spec import (
    Layout,
    Maps,
    Pair,
    TensorMeta,
    ceil_div,
    fail_type,
    layout_of,
    message,
    pair,
    require,
    require_step,
    require_tensor,
)
from lightkernels._core.vmap import Folding
from lightkernels.ops.multi_dwconv2d import reference
from lightkernels.ops.multi_dwconv2d.reference import packed_sizes

NAME = "multi_dwconv2d"
COMBINE = ("concat", "add", "cumulative")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Row(NamedTuple):
    """One branch: y[out_start : out_start + channels] += depthwise(x[in_start : in_start + channels])."""

    kernel: int
    dilation: int
    in_start: int
    out_start: int
    channels: int
    weight_start: int


@dataclass(frozen=True)
class Spec(Maps):
    """Shapes and values of one call; the packed weight is the branches' weights, flattened, one after another."""

    n: int
    c: int
    h: int
    w: int
    ho: int
    wo: int
    c_out: int
    kernel_sizes: tuple[int, ...]
    stride: Pair
    dilations: tuple[int, ...]
    combine: str
    channels: tuple[int, ...]
    split: bool
    dtype: torch.dtype
    device: str
    layout: Layout
    has_bias: bool
    x_stride: tuple[int, ...]
    exact_nonfinite: bool
    cache: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    tuned_by = ("n", "c", "h", "w", "kernel_sizes", "combine", "split", "stride", "dilations", "dtype", "layout")

    @classmethod
    def of(cls, x: TensorMeta, weight: TensorMeta | None, bias: TensorMeta | None, *args: Any) -> Spec:
        kernel_sizes, channels, stride, dilations, combine, split = args
        require(len(x.shape) == 4, NAME, "x", "have 4 dimensions [N, C, H, W]", x)
        n, c, h, w = x.shape
        _check_branches(c, kernel_sizes, channels, dilations, combine, split)
        for i, s in enumerate(stride):
            require_step(NAME, f"stride[{i}]", s)
        c_out = c if combine == "add" else sum(channels)
        if weight is not None:
            size = sum(packed_sizes(channels, kernel_sizes))
            fits = len(weight.shape) == 1 and weight.shape[0] == size
            require(fits, NAME, "weight", f"be packed, of shape [{size}]", weight)
        if bias is not None:
            fits = len(bias.shape) == 1 and bias.shape[0] == c_out
            require(fits, NAME, "bias", f"have shape [{c_out}], the output channels", bias)
        return cls(
            n=n,
            c=c,
            h=h,
            w=w,
            ho=ceil_div(h, stride[0]),
            wo=ceil_div(w, stride[1]),
            c_out=c_out,
            kernel_sizes=tuple(kernel_sizes),
            stride=(stride[0], stride[1]),
            dilations=tuple(dilations),
            combine=combine,
            channels=tuple(channels),
            split=split,
            dtype=x.dtype,
            device=x.device.type,
            layout=layout_of(x.shape, x.stride),
            has_bias=bias is not None,
            x_stride=tuple(x.stride),
            exact_nonfinite=backends.exact(),
        )

    @cached_property
    def empty(self) -> bool:
        """Whether there is no input, and so no output, and only zeros as the weights' gradient."""
        return 0 in self.x_shape

    @cached_property
    def y_shape(self) -> tuple[int, ...]:
        return (self.n, self.c_out, self.ho, self.wo)

    @cached_property
    def weight_shape(self) -> tuple[int, ...]:
        return (sum(packed_sizes(self.channels, self.kernel_sizes)),)

    def rows(self) -> tuple[Row, ...]:
        rows, start, out, weight = [], 0, 0, 0
        for k, d, channels in zip(self.kernel_sizes, self.dilations, self.channels, strict=True):
            rows.append(Row(k, d, start if self.split else 0, 0 if self.combine == "add" else out, channels, weight))
            start, out, weight = start + channels, out + channels, weight + channels * k * k
        return tuple(rows)

    def taps(self) -> tuple[tuple[int, int], ...]:
        """The union of the branches' taps as (dy, dx) offsets, sorted."""
        union: set[tuple[int, int]] = set()
        for k, d in zip(self.kernel_sizes, self.dilations, strict=True):
            reach = range(-(k // 2) * d, (k // 2) * d + 1, d)
            union.update((dy, dx) for dy in reach for dx in reach)
        return tuple(sorted(union))

    def flops(self) -> int:
        """2 x the multiply-adds of the definition: every branch's every tap, padding included."""
        return 2 * self.n * self.ho * self.wo * self.weight_shape[0]

    def bytes(self) -> int:
        """Least traffic of the forward: x, the weights and bias read once, y written once."""
        y = self.n * self.c_out * self.ho * self.wo
        bias = self.c_out if self.has_bias else 0
        return self.dtype.itemsize * (self.n * self.c * self.h * self.w + self.weight_shape[0] + bias + y)


def _check_branches(
    c: int, kernels: Sequence[int], channels: Sequence[int], dilations: Sequence[int], combine: str, split: bool
) -> None:
    count = len(kernels)
    require(count > 0, NAME, "kernel_sizes", "have at least one branch", [])
    require(combine in COMBINE, NAME, "combine", f"be one of {', '.join(map(repr, COMBINE))}", combine)
    fits = len(dilations) == count
    require(fits, NAME, "dilations", f"be an int or one int a branch ({count})", list(dilations))
    for i, (k, d) in enumerate(zip(kernels, dilations, strict=True)):
        require(k % 2 == 1, NAME, f"weights[{i}]", "have an odd kernel size", k, "an even kernel has no centre.")
        require_step(NAME, f"dilations[{i}]", d)
    if split:
        require(combine == "concat", NAME, "split", f"be False with combine={combine!r}", split)
        for i, m in enumerate(channels):
            require(m >= 1, NAME, f"weights[{i}]", "have at least one channel (split=True)", m)
        total = sum(channels)
        require(total == c, NAME, "weights", f"have {c} channels in all (split=True, x has {c})", total)
    else:
        for i, m in enumerate(channels):
            require(m == c, NAME, f"weights[{i}]", f"have {c} channels, as many as x", m)


def _pack(weights: Sequence[Tensor]) -> Tensor:
    if len(weights) == 1:
        return weights[0].reshape(-1)
    return torch.cat([w.reshape(-1) for w in weights])


def _unpack(packed: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    if len(weights) == 1:
        return (packed.view(weights[0].shape),)
    parts = packed.split([w.numel() for w in weights])
    return tuple(p.view(w.shape) for p, w in zip(parts, weights, strict=True))


def _normalise(
    x: object, weights: object, bias: object, stride: object, dilations: object, combine: object, split: object
) -> tuple[Any, ...]:
    """Types of the public call, and its values in the schema's form."""
    require_tensor(NAME, "x", x)
    assert isinstance(x, Tensor) and isinstance(weights, Sequence)
    if x.dtype not in DTYPES:
        fail_type(NAME, "x", "be float32, float64, bfloat16 or float16", x)
    if x.layout is not torch.strided:
        fail_type(NAME, "x", "be a dense tensor", str(x.layout), "x.to_dense() makes one.")
    require(len(weights) > 0, NAME, "weights", "have at least one branch", [])
    for i, w in enumerate(weights):
        require_tensor(NAME, f"weights[{i}]", w)
        _match(x, w, f"weights[{i}]")
        square = w.dim() == 4 and w.shape[1] == 1 and w.shape[2] == w.shape[3]
        require(square, NAME, f"weights[{i}]", "have shape [C, 1, k, k]", w)
    if bias is not None:
        require_tensor(NAME, "bias", bias)
        assert isinstance(bias, Tensor)
        _match(x, bias, "bias")
    steps, rates = _check_values(stride, dilations, split)
    if not isinstance(combine, str):
        fail_type(NAME, "combine", "be a string", combine)
    kernels = [w.shape[3] for w in weights]
    channels = [w.shape[0] for w in weights]
    return (
        kernels,
        channels,
        list(steps),
        rates if not _is_int(dilations) else [dilations] * len(weights),
        combine,
        split,
    )


def _check_values(stride: object, dilations: object, split: object) -> tuple[Pair, list[int]]:
    """Stride as a pair, and dilations as a list, empty where one int stands for all branches."""
    rates = [] if _is_int(dilations) else dilations
    if not isinstance(rates, tuple | list) or not all(map(_is_int, rates)):
        fail_type(NAME, "dilations", "be an int or one int a branch", dilations)
    if not isinstance(split, bool):
        fail_type(NAME, "split", "be a bool", split)
    return pair(NAME, "stride", stride), list(rates)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _sequence(weights: Any) -> tuple[Tensor, ...]:
    if isinstance(weights, Tensor):
        fail_type(NAME, "weights", "be a sequence of tensors", weights, "for one branch pass [weight].")
    try:
        return tuple(weights)
    except TypeError:
        fail_type(NAME, "weights", "be a sequence of tensors", weights)


def _match(x: Tensor, other: Tensor, arg: str) -> None:
    if other.layout is not torch.strided:
        fail_type(NAME, arg, "be a dense tensor", str(other.layout), f"{arg}.to_dense() makes one.")
    if other.dtype != x.dtype:
        fail_type(NAME, arg, f"have x's dtype {str(x.dtype).removeprefix('torch.')}", other)
    if other.device != x.device:
        raise ValueError(message(NAME, arg, f"be on x's device {x.device}", other))


def _fold_args(batch: int, args: tuple[Any, ...]) -> tuple[Any, ...]:
    kernels, channels, *rest = args
    return (kernels, [batch * m for m in channels], *rest)


def _definition(x: Tensor, weights: Sequence[Tensor], bias: Tensor | None, *raw: Any) -> Tensor:
    stride, dilations, combine, split = raw
    return reference.forward(x, weights, bias, stride=stride, dilations=dilations, combine=combine, split=split)


_FOLDING = Folding(
    x=lambda args, size: args[1] if args[5] else args[1][:1],
    w=lambda args, size: packed_sizes(args[1], args[0]),
    y=lambda args, size: args[1][:1] if args[4] == "add" else args[1],
    args=_fold_args,
)

OP: BilinearOp[Spec] = BilinearOp(
    name=NAME,
    package=__package__,
    arguments="int[] kernel_sizes, SymInt[] channels, int[] stride, int[] dilations, str combine, bool split",
    spec=Spec,
    normalise=_normalise,
    pack=_pack,
    unpack=_unpack,
    packed=lambda weights: (sum(w.numel() for w in weights),),
    folding=_FOLDING,
    definition=_definition,
)

_call = OP.__call__


def multi_dwconv2d(
    x: Tensor,
    weights: Sequence[Tensor],
    bias: Tensor | None = None,
    *,
    stride: int | Pair = 1,
    dilations: int | Sequence[int] = 1,
    combine: str = "concat",
    split: bool = False,
    backend: str | None = None,
) -> Tensor:
    r"""Several depthwise convolutions over one input, in one pass.

    Branch m computes, with r = (k_m - 1) / 2 and zeros outside the image,

    .. math:: b_m[n,c,i,j] = \sum_{u,v} w_m[c,0,u,v]\; x[n, a_m+c, s\,i + d_m(u-r), s\,j + d_m(v-r)]

    Equivalent to::

        torch.cat([F.conv2d(x, w, stride=stride, padding=d * (w.shape[-1] // 2), dilation=d, groups=w.shape[0])
                   for w, d in zip(weights, dilations)], 1)    # combine="concat"; "add": their sum

    Args:
        x: [N, C, H, W], float32, float64, bfloat16 or float16; NCHW or channels_last, kept in the output. Batch and
            channel slices are read in place.
        weights: one [C_m, 1, k_m, k_m] tensor a branch, k_m odd; x's dtype and device. C_m = C unless ``split``.
        bias: [output channels], added to the output, or None.
        stride: of all branches; an int or a pair (rows, columns).
        dilations: an int for all branches, or one a branch. Padding is dilation * (k // 2).
        combine: ``"concat"`` stacks the branches' outputs, branch after branch; ``"add"`` sums them, as one merged
            kernel over the union of their taps; ``"cumulative"`` stacks their running sums.
        split: branch m sees its own consecutive C_m channels of x (sum of C_m = C); with ``"concat"`` alone.
        backend: a name of :func:`lightkernels.use_backend`; by default the context's, else the fastest.

    Returns:
        [N, C_out, ceil(H / stride), ceil(W / stride)] in x's dtype and layout, with C_out the sum of C_m, or C for
        ``"add"``. 16-bit types accumulate in float32 and are rounded once.

    Raises:
        TypeError: an argument of the wrong type or dtype. ValueError: a shape or value that does not fit.
        BackendUnavailable: the backend asked for cannot run this call.

    Sources: Multiception (Bao et al.), PydMobileNet (Hoang and Jo), MixConv (Tan and Le), EESP (Mehta et al.).

    Example:
        >>> x = torch.randn(1, 8, 16, 16)
        >>> w3, w5 = torch.randn(8, 1, 3, 3), torch.randn(8, 1, 5, 5)
        >>> multi_dwconv2d(x, [w3, w5], stride=2).shape
        torch.Size([1, 16, 8, 8])
    """
    require_tensor(NAME, "x", x)
    if type(weights) is not list and type(weights) is not tuple:
        weights = _sequence(weights)
    if backend is not None:
        backends.check_name(backend, NAME)
    if type(stride) is not int or type(dilations) is not int or type(split) is not bool:
        # Here, not behind the memo of plans: 1.0 and True find the plan of 1.
        _check_values(stride, dilations, split)
    return _call(x, weights, bias, (stride, dilations, combine, split), backend)

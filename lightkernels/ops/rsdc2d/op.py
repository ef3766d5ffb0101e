"""Randomly selected dilated convolution: contract and public function."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from lightkernels._core import backends
from lightkernels._core.op import BilinearOp
from lightkernels._core.spec import (
    Layout,
    Maps,
    Pair,
    TensorMeta,
    fail_type,
    layout_of,
    message,
    pair,
    require,
    require_step,
    require_tensor,
)
from lightkernels._core.taps import check_count, check_form, check_once
from lightkernels._core.vmap import Folding
from lightkernels.ops.rsdc2d import reference

NAME = "rsdc2d"
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
Scope = Literal["layer", "group", "filter"]


@dataclass(frozen=True)
class Spec(Maps):
    """Shapes and values of one call; the cells themselves are data, int64 [sets, taps], and come with it."""

    n: int
    c: int
    h: int
    w: int
    c_out: int
    ho: int
    wo: int
    kernel_size: int
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    taps: int
    sets: int
    dtype: torch.dtype
    device: str
    layout: Layout
    has_bias: bool
    x_stride: tuple[int, ...]
    exact_nonfinite: bool
    cache: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    tuned_by = ("n", "c", "c_out", "h", "w", "groups", "taps", "kernel_size", "scope", "stride", "dtype", "layout")

    @classmethod
    def of(cls, x: TensorMeta, weight: TensorMeta | None, bias: TensorMeta | None, *args: Any) -> Spec:
        taps, c_out, k, stride, padding, dilation, groups = args
        require(len(x.shape) == 4, NAME, "x", "have 4 dimensions [N, C, H, W]", x)
        n, c, h, w = x.shape
        require(c >= 1, NAME, "x", "have at least one channel", x)
        require(k >= 1 and k % 2 == 1, NAME, "kernel_size", "be odd", k, "an even window has no centre.")
        for name, values, least in (("stride", stride, 1), ("dilation", dilation, 1), ("padding", padding, 0)):
            for i, value in enumerate(values):
                require_step(NAME, f"{name}[{i}]", value, least)
        require(groups >= 1, NAME, "groups", "be at least 1", groups)
        require(c % groups == 0, NAME, "groups", f"divide the {c} channels of x", groups)
        require(c_out % groups == 0, NAME, "groups", f"divide the {c_out} output channels", groups)
        require(len(taps.shape) == 2, NAME, "taps", "have shape [S, T], one set of T cells a row", taps)
        sets, count = taps.shape
        fits = sets in (1, groups, c_out)
        whose = f"1 (layer), {groups} (group) or {c_out} (filter)"
        require(fits, NAME, "taps", f"have {whose} sets of cells", taps)
        check_count(NAME, count, k)
        shape = (c_out, c // groups, count)
        if weight is not None:
            fits = len(weight.shape) == 3 and all(a == b for a, b in zip(weight.shape, shape, strict=True))
            dense = len(weight.shape) == 4
            hint = "RSDC2d.from_conv2d converts a Conv2d." if dense else "[out channels, channels / groups, taps]."
            require(fits, NAME, "weight", f"have shape {list(shape)}", weight, hint)
        if bias is not None:
            fits = len(bias.shape) == 1 and bias.shape[0] == c_out
            require(fits, NAME, "bias", f"have shape [{c_out}], the output channels", bias)
        size = []
        for axis, length, s, p, d in zip("HW", (h, w), stride, padding, dilation, strict=True):
            room = length + 2 * p - d * (k - 1)
            hint = "padding='same' keeps the size."
            require(
                room >= 1, NAME, f"{axis} of x", f"hold a window of {d * (k - 1) + 1} with padding {p}", length, hint
            )
            size.append((room - 1) // s + 1)
        return cls(
            n=n,
            c=c,
            h=h,
            w=w,
            c_out=c_out,
            ho=size[0],
            wo=size[1],
            kernel_size=k,
            stride=(stride[0], stride[1]),
            padding=(padding[0], padding[1]),
            dilation=(dilation[0], dilation[1]),
            groups=groups,
            taps=count,
            sets=sets,
            dtype=x.dtype,
            device=x.device.type,
            layout=layout_of(x.shape, x.stride),
            has_bias=bias is not None,
            x_stride=tuple(x.stride),
            exact_nonfinite=backends.exact(),
        )

    @cached_property
    def scope(self) -> Scope:
        """Whose own a set of cells is; the widest name that fits."""
        if self.sets == 1:
            return "layer"
        return "group" if self.sets == self.groups else "filter"

    @cached_property
    def y_shape(self) -> tuple[int, ...]:
        return (self.n, self.c_out, self.ho, self.wo)

    @cached_property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.c_out, self.c // self.groups, self.taps)

    @cached_property
    def empty(self) -> bool:
        """Whether no output is to be computed; the gradients are zeros."""
        return 0 in self.x_shape or 0 in self.y_shape

    def flops(self) -> int:
        """2 x the multiply-adds of the definition: T taps, whatever the window, padding included."""
        return 2 * self.n * self.ho * self.wo * self.c_out * (self.c // self.groups) * self.taps

    def bytes(self) -> int:
        """Least traffic of the forward: x, weight, taps and bias read once, y written once."""
        weight = self.c_out * (self.c // self.groups) * self.taps
        values = self.n * self.c * self.h * self.w + weight + self.n * self.c_out * self.ho * self.wo
        return self.dtype.itemsize * (values + self.c_out * self.has_bias) + 8 * self.sets * self.taps


def _normalise(
    x: object,
    weights: tuple[object],
    bias: object,
    taps: object,
    kernel_size: object,
    stride: object,
    padding: object,
    dilation: object,
    groups: object,
) -> tuple[Any, ...]:
    """Types of the public call, and its values in the schema's form."""
    (weight,) = weights
    require_tensor(NAME, "x", x)
    require_tensor(NAME, "weight", weight)
    check_form(NAME, taps)
    assert isinstance(x, Tensor) and isinstance(weight, Tensor) and isinstance(taps, Tensor)
    if x.dtype not in DTYPES:
        fail_type(NAME, "x", "be float32, float64, bfloat16 or float16", x)
    if x.layout is not torch.strided:
        fail_type(NAME, "x", "be a dense tensor", str(x.layout), "x.to_dense() makes one.")
    _match(x, weight, "weight")
    if taps.device != x.device:
        raise ValueError(message(NAME, "taps", f"be on x's device {x.device}", taps))
    if bias is not None:
        require_tensor(NAME, "bias", bias)
        assert isinstance(bias, Tensor)
        _match(x, bias, "bias")
    require(weight.dim() >= 1, NAME, "weight", "have shape [out channels, channels / groups, taps]", weight)
    k, steps, pads, rates, groups = _values(kernel_size, stride, padding, dilation, groups)
    return (weight.shape[0], k, list(steps), list(pads), list(rates), groups)


def _values(
    kernel_size: object, stride: object, padding: object, dilation: object, groups: object
) -> tuple[int, Pair, Pair, Pair, int]:
    """The values behind the tensors, of their types; ints to pairs, "same" to numbers."""
    if not _is_int(kernel_size):
        fail_type(NAME, "kernel_size", "be an int", kernel_size)
    if not _is_int(groups):
        fail_type(NAME, "groups", "be an int", groups)
    assert isinstance(kernel_size, int) and isinstance(groups, int)
    rates = pair(NAME, "dilation", dilation)
    if isinstance(padding, str):
        require(padding == "same", NAME, "padding", "be an int, a pair of ints or 'same'", padding)
        pads = (rates[0] * (kernel_size // 2), rates[1] * (kernel_size // 2))
    else:
        pads = pair(NAME, "padding", padding)
    return kernel_size, pair(NAME, "stride", stride), pads, rates, groups


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _ints(value: Any) -> bool:
    """Whether it is an int or a pair of them beyond doubt."""
    if type(value) is int:
        return True
    return type(value) is tuple and len(value) == 2 and type(value[0]) is type(value[1]) is int


def _match(x: Tensor, other: Tensor, arg: str) -> None:
    if other.layout is not torch.strided:
        fail_type(NAME, arg, "be a dense tensor", str(other.layout), f"{arg}.to_dense() makes one.")
    if other.dtype != x.dtype:
        fail_type(NAME, arg, f"have x's dtype {str(x.dtype).removeprefix('torch.')}", other)
    if other.device != x.device:
        raise ValueError(message(NAME, arg, f"be on x's device {x.device}", other))


def _fold_args(batch: int, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """A batch of weights is as many groups; a batch of layers' sets is one set a group."""
    taps, c_out, *rest, groups = args
    if taps.dim() == 3:
        sets = taps.shape[1]
        taps = (taps.expand(batch, groups, -1) if sets == 1 else taps).flatten(0, 1)
    elif taps.shape[0] != 1:
        taps = taps.repeat(batch, 1)
    return (taps, batch * c_out, *rest, batch * groups)


def _definition(x: Tensor, weights: tuple[Tensor], bias: Tensor | None, taps: Tensor, *raw: Any) -> Tensor:
    kernel_size, stride, padding, dilation, groups = _values(*raw)
    return reference.forward(
        x,
        weights[0],
        taps,
        bias,
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    )


OP: BilinearOp[Spec] = BilinearOp(
    name=NAME,
    package=__package__,
    arguments="Tensor taps, SymInt out_channels, int kernel_size, int[] stride, int[] padding, int[] dilation, "
    "SymInt groups",
    spec=Spec,
    normalise=_normalise,
    folding=Folding(args=_fold_args),
    definition=_definition,
    constants=1,
)


def rsdc2d(
    x: Tensor,
    weight: Tensor,
    taps: Tensor,
    bias: Tensor | None = None,
    *,
    kernel_size: int,
    stride: int | Pair = 1,
    padding: int | Pair | str = "same",
    dilation: int | Pair = 1,
    groups: int = 1,
    backend: str | None = None,
) -> Tensor:
    r"""Randomly selected dilated convolution: T cells of a k x k window, at the price of T taps.

    With taps[s(o), t] = u k + v, the t-th cell of filter o's set, and zeros outside the image,

    .. math:: y[n,o,i,j] = \sum_{c,t} w[o,c,t]\; x[n, g(o)+c, s\,i - p + d\,u, s\,j - p + d\,v]

    Equivalent to::

        F.conv2d(x, torch.zeros(*weight.shape[:2], kernel_size**2).scatter_(
            2, taps.repeat_interleave(weight.shape[0] // len(taps), 0)[:, None].expand(weight.shape), weight
        ).unflatten(2, (kernel_size, kernel_size)), bias, stride, dilation * (kernel_size // 2), dilation, groups)

    Args:
        x: [N, C, H, W], float32, float64, bfloat16 or float16; NCHW or channels_last, kept in the output. Batch and
            channel slices are read in place.
        weight: [C_out, C / groups, T]; x's dtype and device.
        taps: int64 [S, T] on x's device, cells y * k + x of the window, none twice in a set. S = 1: one set for all;
            S = groups: one a group; S = C_out: one a filter. Its values are read once for a tensor and its version;
            compiled code does not check them, and no kernel leaves its buffers whatever they are.
        bias: [C_out] or None.
        kernel_size: the side k of the window, odd.
        stride, dilation: an int or a pair (rows, columns).
        padding: an int, a pair, or ``"same"``, which is dilation * (k // 2) at any stride.
        groups: as in ``F.conv2d``; ``groups == C == C_out`` is depthwise.
        backend: a name of :func:`lightkernels.use_backend`; by default the context's, else the fastest.

    Returns:
        [N, C_out, (H + 2 padding - dilation (k - 1) - 1) // stride + 1, the same of W] in x's dtype and layout.
        16-bit types accumulate in float32 and are rounded once.

    Raises:
        TypeError: an argument of the wrong type or dtype. ValueError: a shape or value that does not fit.
        BackendUnavailable: the backend asked for cannot run this call.

    Source: Park and Chang, Sensors 2021, 21, 7862, Algorithm 3 and Figure 4 (nine cells, one set a filter).

    Example:
        >>> x, w = torch.randn(1, 8, 16, 16), torch.randn(4, 8, 9)
        >>> taps = torch.randperm(25)[:9][None]
        >>> rsdc2d(x, w, taps, kernel_size=5, stride=2).shape
        torch.Size([1, 4, 8, 8])
    """
    if backend is not None:
        backends.check_name(backend, NAME)
    exact = type(kernel_size) is type(groups) is int and _ints(stride) and _ints(dilation)
    if not (exact and (type(padding) is str or _ints(padding))):
        # Here, not behind the memo of plans: 1.0 and True find the plan of 1.
        _values(kernel_size, stride, padding, dilation, groups)
    if not isinstance(x, Tensor) or not isinstance(weight, Tensor):
        require_tensor(NAME, "x", x)
        require_tensor(NAME, "weight", weight)
    if not torch.compiler.is_compiling():
        check_once(NAME, taps, kernel_size)
    return OP(x, (weight,), bias, (kernel_size, stride, padding, dilation, groups), backend, (taps,))

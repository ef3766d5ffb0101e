"""The native CPU kernels: addresses and sizes go to lightkernels._C."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightkernels._core import native
from lightkernels._core.native import gradient
from lightkernels._core.spec import effective_step
from lightkernels.ops.rsdc2d.reference import without_terms

if TYPE_CHECKING:
    from lightkernels.ops.rsdc2d.op import Spec

PLAN = "Rsdc2dPlan"
_threads = torch.get_num_threads
_empty = torch.empty_strided
_PASSES = ("fwd", "bwd_x", "bwd_w")
# In the order of Way in csrc/rsdc2d/params.h.
_WAYS = (
    "depthwise with zeros between the taps",
    "tap by tap",
    "depthwise, plane by plane",
    "each filter's taps over vectors of pixels",
    "matrix product over vectors of channels",
    "masked dense window",
    "rows of a 3x3 window by fours, in half of the products",
)
_FOURS = _WAYS[-1]


def why_not(spec: Spec) -> str | None:
    return native.why_not(spec, PLAN)


def readable(spec: Spec, stride: tuple[int, ...]) -> bool:
    """Whether kernels can read a tensor of these strides in place: rows (nchw) or pixels (nhwc) without gaps."""
    unit = 1 if spec.layout == "nhwc" else 3
    return stride[unit] == 1 and min(stride) >= 0


def copies(spec: Spec) -> str | None:
    """What is copied before the kernel runs, for ``explain``."""
    if not readable(spec, spec.x_stride):
        return f"x is copied: its strides {spec.x_stride} are neither NCHW rows nor NHWC pixels"
    return None


def config_text(spec: Spec) -> str | None:
    """How each pass is computed, for ``explain``."""
    x = spec.x_stride if readable(spec, spec.x_stride) else spec.dense_x_stride
    plan: Any = None if spec.empty else _plan(spec, x, spec.y_stride)
    if not hasattr(plan, "ways"):  # nothing to compute, or a core of an earlier build
        return None
    return ", ".join(f"{name} {_WAYS[way]}" for name, way in zip(_PASSES, plan.ways(_threads()), strict=True))


def plan_head(spec: Spec) -> list[int]:
    """All numbers of a plan but strides, in the order of csrc/bindings/rsdc2d_plan.h."""
    axes = zip((spec.h, spec.w), spec.padding, spec.dilation, strict=True)
    places = [size + 2 * p - d * (spec.kernel_size - 1) for size, p, d in axes]
    head = [spec.n, spec.c, spec.c_out, spec.h, spec.w, spec.ho, spec.wo, spec.kernel_size]
    head += [
        *map(effective_step, spec.stride, places),
        *spec.padding,
        *spec.dilation,
        spec.groups,
        spec.taps,
        spec.sets,
    ]
    return [*head, int(spec.layout == "nhwc"), native.DTYPES[spec.dtype], int(spec.exact_nonfinite)]


def _plan(spec: Spec, x: tuple[int, ...], y: tuple[int, ...]) -> Any:
    key = (x, y)
    plan = spec.cache.get(key)
    if plan is None:
        plan = spec.cache[key] = native.plan_class(PLAN)(plan_head(spec), list(x), list(y))
    return plan


def _input(spec: Spec, x: Tensor) -> Tensor:
    if readable(spec, x.stride()):
        return x
    return x.new_empty_strided(spec.x_shape, spec.dense_x_stride).copy_(x)


def fwd(spec: Spec, x: Tensor, w: Tensor, b: Tensor | None, taps: Tensor) -> Tensor:
    x, w, taps = _input(spec, x), w.contiguous(), taps.contiguous()
    bias = 0 if b is None else (b := b.contiguous()).data_ptr()
    y = _empty(spec.y_shape, spec.y_stride, dtype=spec.dtype, device="cpu")
    if spec.empty:
        return without_terms(y, b)
    plan = _plan(spec, x.stride(), spec.y_stride)
    plan.fwd(x.data_ptr(), w.data_ptr(), bias, taps.data_ptr(), y.data_ptr(), _threads())
    return y


def bwd_x(spec: Spec, g: Tensor, w: Tensor, taps: Tensor) -> Tensor:
    if spec.empty:
        return g.new_zeros(spec.x_shape).as_strided(spec.x_shape, spec.dense_x_stride)
    g, w, taps = gradient(spec, g), w.contiguous(), taps.contiguous()
    gx = _empty(spec.x_shape, spec.dense_x_stride, dtype=spec.dtype, device="cpu")
    plan = _plan(spec, spec.dense_x_stride, g.stride())
    plan.bwd_x(g.data_ptr(), w.data_ptr(), taps.data_ptr(), gx.data_ptr(), _threads())
    return gx


def bwd_w(spec: Spec, g: Tensor, x: Tensor, taps: Tensor) -> Tensor:
    if spec.empty:
        return x.new_zeros(spec.weight_shape)
    g, x, taps = gradient(spec, g), _input(spec, x), taps.contiguous()
    gw = x.new_empty(spec.weight_shape)
    plan = _plan(spec, x.stride(), g.stride())
    plan.bwd_w(g.data_ptr(), x.data_ptr(), taps.data_ptr(), gw.data_ptr(), _threads())
    return gw


def moments(spec: Spec, x: Tensor, w: Tensor, taps: Tensor, g: Tensor, shuffled: int) -> Tensor | None:
    """See :func:`lightkernels.ops.rsdc2d.moments.rsdc2d_moments`; None where outputs are computed in another way."""
    run = spec.cache.get("moments", spec)
    if run is spec:
        plan: Any = None if spec.empty else _plan(spec, spec.dense_x_stride, spec.y_stride)
        able = hasattr(plan, "moments") and _WAYS[plan.ways(1)[0]] == _FOURS
        run = spec.cache["moments"] = plan.moments if able else None
    if run is None or x.stride() != spec.dense_x_stride:
        return None
    sums, w, g = torch.empty(4, spec.c_out, dtype=torch.float64), w.contiguous(), g.contiguous()
    run(x.data_ptr(), w.data_ptr(), taps.data_ptr(), g.data_ptr(), shuffled, spec.c_out, sums.data_ptr(), _threads())
    return sums

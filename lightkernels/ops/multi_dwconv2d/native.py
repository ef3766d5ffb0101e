"""The native CPU kernels: addresses and sizes go to lightkernels._C."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightkernels._core import native
from lightkernels._core.native import gradient
from lightkernels._core.spec import effective_step

if TYPE_CHECKING:
    from lightkernels.ops.multi_dwconv2d.op import Spec

PLAN = "MultiDwconv2dPlan"
_COMBINE = {"concat": 0, "add": 1, "cumulative": 2}
TAKES_APART = True
_threads = torch.get_num_threads


def why_not(spec: Spec) -> str | None:
    return native.why_not(spec, PLAN)


def readable(spec: Spec, stride: tuple[int, ...]) -> bool:
    """Whether kernels can read a tensor of these strides in place: rows (nchw) or pixels (nhwc) without gaps."""
    unit = 1 if spec.layout == "nhwc" else 3
    return (stride[unit] == 1 or spec.x_shape[unit] == 1) and min(stride) >= 0


def copies(spec: Spec) -> str | None:
    """What is copied before the kernel runs, for ``explain``."""
    if x_copy(spec) is not None:
        return f"x is copied: its strides {spec.x_stride} are neither NCHW rows nor NHWC pixels"
    return None


def x_copy(spec: Spec) -> tuple[int, ...] | None:
    """The strides of the copy of x that kernels read; None if they read x itself."""
    return None if readable(spec, spec.x_stride) else spec.dense_x_stride


def plan_values(spec: Spec, x: tuple[int, ...], y: tuple[int, ...]) -> tuple[Any, ...]:
    """What a native plan is made of; the same for every device."""
    steps = map(effective_step, spec.stride, (spec.h, spec.w))
    head = [spec.n, spec.c, spec.h, spec.w, spec.ho, spec.wo, spec.c_out, *steps]
    head += [_COMBINE[spec.combine], int(spec.layout == "nhwc"), native.DTYPES[spec.dtype]]
    return head, _unit(spec, x), _unit(spec, y), [list(row) for row in spec.rows()], spec.exact_nonfinite


def _plan(spec: Spec, x: tuple[int, ...], y: tuple[int, ...]) -> Any:
    key = (x, y)
    plan = spec.cache.get(key)
    if plan is None:
        plan = spec.cache[key] = native.plan_class(PLAN)(*plan_values(spec, x, y))
    return plan


def _unit(spec: Spec, stride: tuple[int, ...]) -> list[int]:
    """Strides as the kernels want them: 1 in the innermost dimension, also where its size is 1 and torch says else."""
    inner = 1 if spec.layout == "nhwc" else 3
    return [1 if i == inner else s for i, s in enumerate(stride)]


def _input(spec: Spec, x: Tensor) -> Tensor:
    if readable(spec, x.stride()):
        return x
    return x.new_empty_strided(spec.x_shape, spec.dense_x_stride).copy_(x)


def _native(spec: Spec, kind: str, x: tuple[int, ...], y: tuple[int, ...], usual: tuple[int, ...]) -> Any:
    """The native function of pass ``kind`` for these strides, remembered by name for those that most calls have."""
    run = getattr(_plan(spec, x, y), kind)
    if x == usual and y == spec.y_stride:
        spec.cache[kind] = run
    return run


def fwd(spec: Spec, x: Tensor, w: Tensor | tuple[Tensor, ...], b: Tensor | None) -> Tensor:
    y = x.new_empty_strided(spec.y_shape, spec.y_stride)
    if spec.empty:
        return y
    kind = "fwd_apart" if isinstance(w, tuple) else "fwd"
    run = spec.cache.get(kind)
    if run is None:
        x = _input(spec, x)
        run = _native(spec, kind, x.stride(), spec.y_stride, spec.x_stride)
    weights: int | list[int]
    if isinstance(w, tuple):
        w = tuple([one.contiguous() for one in w])
        weights = [one.data_ptr() for one in w]
    else:
        w = w.contiguous()
        weights = w.data_ptr()
    bias = 0 if b is None else (b := b.contiguous()).data_ptr()
    run(x.data_ptr(), weights, bias, y.data_ptr(), _threads())
    return y


def bwd_x(spec: Spec, g: Tensor, w: Tensor) -> Tensor:
    gx = g.new_empty_strided(spec.x_shape, spec.dense_x_stride)
    if spec.empty:
        return gx
    run = spec.cache.get("bwd_x") if g.stride() == spec.y_stride else None
    if run is None:
        g = gradient(spec, g)
        run = _native(spec, "bwd_x", spec.dense_x_stride, g.stride(), spec.dense_x_stride)
    w = w.contiguous()
    run(g.data_ptr(), w.data_ptr(), gx.data_ptr(), _threads())
    return gx


def bwd_w(spec: Spec, g: Tensor, x: Tensor) -> Tensor:
    if spec.empty:
        return x.new_zeros(spec.weight_shape)
    # x may have come back from a hook on saved tensors, with other strides.
    run = spec.cache.get("bwd_w") if g.stride() == spec.y_stride and x.stride() == spec.x_stride else None
    if run is None:
        g, x = gradient(spec, g), _input(spec, x)
        run = _native(spec, "bwd_w", x.stride(), g.stride(), spec.x_stride)
    gw = x.new_empty(spec.weight_shape)
    run(g.data_ptr(), x.data_ptr(), gw.data_ptr(), _threads())
    return gw

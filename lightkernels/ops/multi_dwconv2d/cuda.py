"""The native CUDA kernels: device addresses, sizes and a stream go to lightkernels._cuda."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightkernels._core import cuda_host
from lightkernels._core.native import gradient
from lightkernels._core.triton_host import guard
from lightkernels.ops.multi_dwconv2d.native import plan_values, readable, x_copy

if TYPE_CHECKING:
    from lightkernels.ops.multi_dwconv2d.op import Spec

PLAN = "MultiDwconv2dPlan"


def why_not(spec: Spec) -> str | None:
    reason = cuda_host.unsuited(spec.device, PLAN)
    if reason is not None:
        return reason
    most = cuda_host.module(PLAN).MULTI_DWCONV2D_BRANCHES
    if len(spec.kernel_sizes) > most:
        return f"{len(spec.kernel_sizes)} branches; the kernels take up to {most}"
    if max(*spec.x_shape, spec.c_out, *spec.kernel_sizes, *spec.dilations, *spec.stride) > cuda_host.SIZE_LIMIT:
        return "a size above 2**31 - 1"
    return None


def config_text(spec: Spec) -> str:
    """The kernels of the three passes, for ``explain``."""
    plan = _plan(spec, x_copy(spec) or spec.x_stride, spec.y_stride)
    return "; ".join(f"{name} {plan.kernels(i)}" for i, name in enumerate(("fwd", "bwd_x", "bwd_w")))


def copies(spec: Spec) -> str | None:
    """What is copied before the kernel runs, for ``explain``."""
    if x_copy(spec) is not None:
        return f"x is copied: its strides {spec.x_stride} are neither NCHW rows nor NHWC pixels"
    return None


def _plan(spec: Spec, x: tuple[int, ...], y: tuple[int, ...]) -> Any:
    key = ("cuda", x, y)
    plan = spec.cache.get(key)
    if plan is None:
        make = cuda_host.module(PLAN).MultiDwconv2dPlan
        plan = spec.cache[key] = make(*plan_values(spec, x, y))
    return plan


def _input(spec: Spec, x: Tensor) -> Tensor:
    if readable(spec, x.stride()):
        return x
    return x.new_empty_strided(spec.x_shape, spec.dense_x_stride).copy_(x)


def fwd(spec: Spec, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    y = x.new_empty_strided(spec.y_shape, spec.y_stride)
    if spec.empty:
        return y
    x, w = _input(spec, x), w.contiguous()
    bias = 0 if b is None else (b := b.contiguous()).data_ptr()
    with guard(x.device):
        plan = _plan(spec, x.stride(), spec.y_stride)
        plan.fwd(x.data_ptr(), w.data_ptr(), bias, y.data_ptr(), cuda_host.stream(x.device))
    return y


def bwd_x(spec: Spec, g: Tensor, w: Tensor) -> Tensor:
    gx = g.new_empty_strided(spec.x_shape, spec.dense_x_stride)
    if spec.empty:
        return gx
    g, w = gradient(spec, g), w.contiguous()
    with guard(g.device):
        plan = _plan(spec, spec.dense_x_stride, g.stride())
        plan.bwd_x(g.data_ptr(), w.data_ptr(), gx.data_ptr(), cuda_host.stream(g.device))
    return gx


def bwd_w(spec: Spec, g: Tensor, x: Tensor) -> Tensor:
    gw = x.new_empty(spec.weight_shape)
    if spec.empty:
        return gw.zero_()
    g, x = gradient(spec, g), _input(spec, x)
    with guard(x.device):
        plan = _plan(spec, x.stride(), g.stride())
        work = x.new_empty(plan.work_size(), dtype=torch.float64 if x.dtype is torch.float64 else torch.float32)
        plan.bwd_w(g.data_ptr(), x.data_ptr(), work.data_ptr(), gw.data_ptr(), cuda_host.stream(x.device))
    return gw

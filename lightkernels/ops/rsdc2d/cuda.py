"""The native CUDA kernels: device addresses, sizes and a stream go to lightkernels._cuda.

Matrix products read operands channels last, pixels at 16-byte aligned addresses; what lies otherwise is copied once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightkernels._core import cuda_host
from lightkernels._core.native import gradient
from lightkernels._core.spec import dense_stride
from lightkernels._core.triton_host import guard
from lightkernels.ops.rsdc2d.native import plan_head, readable
from lightkernels.ops.rsdc2d.reference import without_terms

if TYPE_CHECKING:
    from lightkernels.ops.rsdc2d.op import Spec

PLAN = "Rsdc2dPlan"
PASSES = ("fwd", "bwd_x", "bwd_w")
KERNELS = ("tap by tap", "tensor cores", "tiles")  # in the order of Kernel in csrc/rsdc2d/cuda.h
ALIGNED = 16  # bytes


def why_not(spec: Spec) -> str | None:
    reason = cuda_host.unsuited(spec.device, PLAN)
    if reason is not None:
        return reason
    most = cuda_host.module(PLAN).RSDC2D_KERNEL
    if spec.kernel_size > most:
        return f"a window of {spec.kernel_size}; the kernels take up to {most}"
    reach = [
        spec.dilation[i] * spec.kernel_size + max(size, out * spec.stride[i]) + spec.padding[i]
        for i, (size, out) in enumerate(((spec.h, spec.ho), (spec.w, spec.wo)))
    ]
    weights = spec.c_out * (spec.c // spec.groups) * spec.taps
    if max(*spec.x_shape, *spec.y_shape, *spec.stride, *reach, weights) > cuda_host.SIZE_LIMIT:
        return "a size above 2**31 - 1"
    return None


def config_text(spec: Spec) -> str:
    """The kernels of the three passes, for ``explain``."""
    return "; ".join(f"{name} {KERNELS[_kernel(spec, i)]}" for i, name in enumerate(PASSES))


def copies(spec: Spec) -> str | None:
    """What is copied before the kernel runs, for ``explain``."""
    if _kernel(spec, 0):
        if not _aligned(spec.x_stride, spec.dtype):
            return "x is copied into channels_last: the matrix product reads a pixel's channels side by side"
    elif not readable(spec, spec.x_stride):
        return f"x is copied: its strides {spec.x_stride} are neither NCHW rows nor NHWC pixels"
    return None


def _plan(spec: Spec, x: tuple[int, ...], y: tuple[int, ...]) -> Any:
    key = ("cuda", x, y)
    plan = spec.cache.get(key)
    if plan is None:
        plan = spec.cache[key] = cuda_host.module(PLAN).Rsdc2dPlan(plan_head(spec), list(x), list(y))
    return plan


def _kernel(spec: Spec, kind: int) -> int:
    """What runs a pass, once its operands lie as they should; 0 takes them as they are."""
    x, y = dense_stride(spec.x_shape, "nhwc"), dense_stride(spec.y_shape, "nhwc")
    kernel: int = _plan(spec, x, y).kernel(kind)
    return kernel


def _aligned(stride: tuple[int, ...], dtype: torch.dtype) -> bool:
    n, c, h, w = stride
    return c == 1 and min(stride) > 0 and not any(s * dtype.itemsize % ALIGNED for s in (n, h, w))


def _input(spec: Spec, kind: int, x: Tensor) -> Tensor:
    """x as the kernels of a pass read it."""
    if _kernel(spec, kind):
        return _pixels(x)
    if readable(spec, x.stride()):
        return x
    return x.new_empty_strided(spec.x_shape, spec.dense_x_stride).copy_(x)


def _gradient(spec: Spec, kind: int, g: Tensor) -> Tensor:
    return _pixels(g) if _kernel(spec, kind) else gradient(spec, g)


def _pixels(t: Tensor) -> Tensor:
    if _aligned(t.stride(), t.dtype) and t.data_ptr() % ALIGNED == 0:
        return t
    return t.new_empty_strided(t.shape, dense_stride(t.shape, "nhwc")).copy_(t)


def _work(plan: Any, kind: int, t: Tensor) -> Tensor:
    return t.new_empty(plan.work_size(kind), dtype=torch.uint8)


def fwd(spec: Spec, x: Tensor, w: Tensor, b: Tensor | None, taps: Tensor) -> Tensor:
    y = x.new_empty_strided(spec.y_shape, spec.y_stride)
    if spec.empty:
        return without_terms(y, b)
    x, w, taps = _input(spec, 0, x), w.contiguous(), taps.contiguous()
    bias = 0 if b is None else (b := b.contiguous()).data_ptr()
    with guard(x.device):
        plan = _plan(spec, x.stride(), spec.y_stride)
        work = _work(plan, 0, x)
        addresses = (x.data_ptr(), w.data_ptr(), bias, taps.data_ptr(), work.data_ptr(), y.data_ptr())
        plan.fwd(*addresses, cuda_host.stream(x.device))
    return y


def bwd_x(spec: Spec, g: Tensor, w: Tensor, taps: Tensor) -> Tensor:
    gx = g.new_empty_strided(spec.x_shape, spec.dense_x_stride)
    if spec.empty:
        return gx.zero_()
    g, w, taps = _gradient(spec, 1, g), w.contiguous(), taps.contiguous()
    with guard(g.device):
        plan = _plan(spec, spec.dense_x_stride, g.stride())
        work = _work(plan, 1, g)
        addresses = (g.data_ptr(), w.data_ptr(), taps.data_ptr(), work.data_ptr(), gx.data_ptr())
        plan.bwd_x(*addresses, cuda_host.stream(g.device))
    return gx


def bwd_w(spec: Spec, g: Tensor, x: Tensor, taps: Tensor) -> Tensor:
    gw = x.new_empty(spec.weight_shape)
    if spec.empty:
        return gw.zero_()
    g, x, taps = _gradient(spec, 2, g), _input(spec, 2, x), taps.contiguous()
    with guard(x.device):
        plan = _plan(spec, x.stride(), g.stride())
        work = _work(plan, 2, x)
        addresses = (g.data_ptr(), x.data_ptr(), taps.data_ptr(), work.data_ptr(), gw.data_ptr())
        plan.bwd_w(*addresses, cuda_host.stream(x.device))
    return gw

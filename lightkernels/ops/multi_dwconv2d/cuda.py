"""The native CUDA kernels: device addresses, sizes and a stream go to lightkernels._cuda."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightkernels._core import native
from lightkernels._core.triton_host import guard
from lightkernels.ops.multi_dwconv2d.native import gradient, plan_values, readable, x_copy

if TYPE_CHECKING:
    from lightkernels.ops.multi_dwconv2d.op import Spec

DEVICE = "cuda"
_SIZE_LIMIT = 2**31 - 1


def why_not(spec: Spec) -> str | None:
    if spec.device != DEVICE:
        return f"the tensors are on {spec.device}, not on a CUDA device"
    module, reason = native.load("_cuda", "MultiDwconv2dPlan")
    if module is None:
        return reason
    reason = _no_code(module)
    if reason is not None:
        return reason
    if len(spec.kernel_sizes) > module.MULTI_DWCONV2D_BRANCHES:
        return f"{len(spec.kernel_sizes)} branches; the kernels take up to {module.MULTI_DWCONV2D_BRANCHES}"
    if max(*spec.x_shape, spec.c_out, *spec.kernel_sizes, *spec.dilations, *spec.stride) > _SIZE_LIMIT:
        return "a size above 2**31 - 1"
    return None


def _no_code(module: Any) -> str | None:
    return _image(module, _current_device())


@functools.cache
def _image(module: Any, device: int) -> str | None:
    """Why the module has no code for a device: its driver's own words."""
    if device < 0:
        return "there is no CUDA device"
    arch = module.image_arch(device)
    return None if isinstance(arch, int) else f"lightkernels._cuda does not run on this device: {arch}"


def _current_device() -> int:
    return torch.cuda.current_device() if torch.cuda.is_available() else -1


def _stream(device: torch.device) -> int:
    stream: int = torch._C._cuda_getCurrentRawStream(device.index)
    return stream


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
        module, reason = native.load("_cuda", "MultiDwconv2dPlan")
        if module is None:
            raise RuntimeError(reason)
        plan = spec.cache[key] = module.MultiDwconv2dPlan(*plan_values(spec, x, y), spec.exact_nonfinite)
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
        plan.fwd(x.data_ptr(), w.data_ptr(), bias, y.data_ptr(), _stream(x.device))
    return y


def bwd_x(spec: Spec, g: Tensor, w: Tensor) -> Tensor:
    gx = g.new_empty_strided(spec.x_shape, spec.dense_x_stride)
    if spec.empty:
        return gx
    g, w = gradient(spec, g), w.contiguous()
    with guard(g.device):
        plan = _plan(spec, spec.dense_x_stride, g.stride())
        plan.bwd_x(g.data_ptr(), w.data_ptr(), gx.data_ptr(), _stream(g.device))
    return gx


def bwd_w(spec: Spec, g: Tensor, x: Tensor) -> Tensor:
    gw = x.new_empty(spec.weight_shape)
    if spec.empty:
        return gw.zero_()
    g, x = gradient(spec, g), _input(spec, x)
    with guard(x.device):
        plan = _plan(spec, x.stride(), g.stride())
        work = x.new_empty(plan.work_size(), dtype=torch.float64 if x.dtype is torch.float64 else torch.float32)
        plan.bwd_w(g.data_ptr(), x.data_ptr(), work.data_ptr(), gw.data_ptr(), _stream(x.device))
    return gw

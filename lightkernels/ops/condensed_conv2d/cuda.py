"""The native CUDA kernels: device addresses, sizes and a stream go to lightkernels._cuda."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightkernels._core import cuda_host
from lightkernels._core.triton_host import guard
from lightkernels.ops.condensed_conv2d.native import copies as copies
from lightkernels.ops.condensed_conv2d.native import plan_head, readable
from lightkernels.ops.condensed_conv2d.spec import Inputs, Outputs, Spec

PLAN = "CondensedConv2dPlan"
TILE = 128  # pixels
TENSOR = (2,)  # bytes of the dtypes that tensor cores multiply


def why_not(spec: Spec) -> str | None:
    reason = cuda_host.unsuited(spec.device, PLAN)
    if reason is not None:
        return reason
    blocks = (spec.n * spec.h * spec.w // TILE + 1) * spec.groups
    weights = spec.c_out * spec.picked
    if max(spec.c, spec.h * spec.w, spec.groups * spec.picked, weights, blocks) > cuda_host.SIZE_LIMIT:
        return "a size above 2**31 - 1"
    return None


def config_text(spec: Spec) -> str:
    products = "tensor cores" if spec.dtype.itemsize in TENSOR else "tiles"
    return f"fwd {products}; bwd {products}, sums in fixed orders"


def _plan(spec: Spec, stride: tuple[int, ...]) -> Any:
    key = ("cuda", stride)
    plan = spec.cache.get(key)
    if plan is None:
        plan = spec.cache[key] = cuda_host.module(PLAN).CondensedConv2dPlan(plan_head(spec, stride))
    return plan


def _input(spec: Spec, x: Tensor) -> Tensor:
    return x if readable(spec, x.stride()) else x.new_empty_strided(spec.x_shape, spec.dense_x_stride).copy_(x)


def infer(spec: Spec, t: Inputs) -> Tensor:
    y: Tensor = t.x.new_empty_strided(spec.y_shape, spec.y_stride)
    if spec.empty:
        return y
    x = _input(spec, t.x)
    rest = tuple(one.contiguous() for one in t[1:])
    with guard(x.device):
        addresses = (one.data_ptr() for one in (x, *rest, y))
        _plan(spec, x.stride()).fwd(*addresses, cuda_host.stream(x.device))
    return y


def fwd(spec: Spec, t: Inputs) -> Outputs:
    return Outputs(infer(spec, t))


def bwd(spec: Spec, g: Tensor, t: Inputs, out: Outputs) -> tuple[Tensor, ...]:
    gx: Tensor = g.new_empty_strided(spec.x_shape, spec.dense_x_stride)
    gw, gscale, gshift = (one.new_empty(tuple(one.shape)) for one in t[1:4])
    if spec.empty:
        return gx, gw.zero_(), gscale.zero_(), gshift.zero_()
    x = _input(spec, t.x)
    rest = tuple(one.contiguous() for one in t[1:])
    flat, order = t.index.flatten().sort(stable=True)
    bounds = torch.searchsorted(flat, torch.arange(spec.c + 1, device=flat.device))
    with guard(x.device):
        plan = _plan(spec, x.stride())
        work = x.new_empty(plan.work_size(), dtype=torch.uint8)
        tensors = (g, x, *rest, order, bounds, work, gx, gw, gscale, gshift)
        plan.bwd(*(one.data_ptr() for one in tensors), cuda_host.stream(x.device))
    return gx, gw, gscale, gshift

"""The native CUDA kernels, of evaluation: device addresses, sizes and a stream go to lightkernels._cuda.

The backward of a call with frozen norms that recomputes is PyTorch's composition.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightkernels._core import backends, cuda_host
from lightkernels._core.triton_host import guard
from lightkernels.ops.mldn_block import composite
from lightkernels.ops.mldn_block.native import call_inputs, plan_arguments
from lightkernels.ops.mldn_block.spec import Inputs, Outputs, Spec

PLAN = "MldnBlockPlan"
TENSOR = 2  # bytes of the dtypes that tensor cores multiply


def why_not(spec: Spec) -> str | None:
    reason = cuda_host.unsuited(spec.device, PLAN)
    if reason is not None:
        return reason
    if spec.version != 1:
        return "the kernels are of version 1"
    if spec.batch_stats or spec.keep or spec.dropout > 0:
        return "the kernels evaluate: running statistics, no dropout, nothing kept for a backward"
    many, reads = spec.layers * spec.paths, spec.inputs_of(spec.layers - 1)
    weights = spec.paths * spec.mid * (reads + 32) + spec.kappa * (spec.mid + 32) * max(spec.taps, spec.kernel_size**2)
    counts = (spec.h * spec.w, spec.paths * spec.widths[-1], spec.n * spec.h * spec.paths, many * weights)
    if max(counts) > cuda_host.SIZE_LIMIT:
        return "a size above 2**31 - 1"
    if spec.dtype.itemsize == TENSOR and backends.exact() and (spec.groups > 1 or spec.sets > 1):
        return "tensor cores multiply what other groups or cells have by zero, and exact_nonfinite is on"
    if not spec.empty and _cut(spec)[0] == 0:
        return f"a row of {spec.w} pixels with what it reaches does not fit in shared memory"
    return None


def config_text(spec: Spec) -> str:
    """For `explain`."""
    rows, bands, together, resident, shared = _cut(spec)
    products = "tensor cores" if spec.dtype.itemsize == TENSOR else "tiles"
    room = f"{shared / 1024:.0f} KiB of shared memory"
    if resident:
        return f"{products}; all layers in one launch, an image of {together} paths in {room}"
    return f"{products}; a launch a layer, {bands} bands of {rows} rows an image in {room}"


def _plan(spec: Spec) -> Any:
    plan = spec.cache.get("cuda")
    if plan is None:
        plan = spec.cache["cuda"] = cuda_host.module(PLAN).MldnBlockPlan(*plan_arguments(spec, False))
    return plan


def _most(spec: Spec) -> int:
    """Bytes of shared memory that a block of threads may have."""
    most: int = cuda_host.shared_memory(PLAN)
    return most


def _cut(spec: Spec) -> tuple[int, int, int, int, int]:
    found: tuple[int, int, int, int, int] = _plan(spec).cut(_most(spec))
    return found


def infer(spec: Spec, t: Inputs) -> Tensor:
    y: Tensor = t.x.new_empty_strided(spec.y_shape, spec.y_stride)
    if spec.empty:
        return y
    dense = Inputs(t.x, *(None if one is None else one.contiguous() for one in t[1:]))
    with guard(y.device):
        spec.prefix(y).copy_(spec.by_path(t.x))
        plan = _plan(spec)
        work = y.new_empty(plan.work_size(), dtype=torch.uint8)
        given = call_inputs(dense)
        plan.infer(given, _most(spec), work.data_ptr(), y.data_ptr(), cuda_host.stream(y.device))
    return y


def fwd(spec: Spec, t: Inputs) -> Outputs:
    y = infer(spec, t)
    return Outputs(y, *(y.new_empty(shape, dtype=dtype) for shape, dtype in spec.kept()))


def bwd(spec: Spec, g: Tensor, t: Inputs, out: Outputs) -> tuple[Tensor | None, ...]:
    return composite.bwd(spec, g, t, out)

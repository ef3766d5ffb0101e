"""The Triton backend. Importing this does not import Triton: `why_not` does, and the kernels come on first use."""

from __future__ import annotations

from torch import Tensor

from lightkernels._core.triton_host import GRID_LIMIT, guard, unsuited
from lightkernels.ops.condensed_conv2d.spec import Inputs, Outputs, Spec

LIMIT = GRID_LIMIT - 2**16  # of what the kernels count in 32 bits; a last tile may go beyond


def why_not(spec: Spec) -> str | None:
    reason = unsuited(spec.device)
    if reason is not None:
        return reason
    counts = {
        "pixels": spec.n * spec.h * spec.w,
        "weights": spec.c_out * spec.picked,
        # Tiles hold at least 32 pixels and 16 channels, of the outputs, of what is picked, or of the input.
        "programs": (spec.n * spec.h * spec.w // 32 + 1) * (max(spec.c_out, spec.c) + spec.groups * spec.picked),
    }
    for name, count in counts.items():
        if count > LIMIT:
            return f"the call has {count} {name}, more than {LIMIT}"
    return None


def config_text(spec: Spec) -> str:
    return "one kernel forward; weight gradient in two stages, gradient of x by a product and a gather; not yet timed"


def fwd(spec: Spec, t: Inputs) -> Outputs:
    return Outputs(infer(spec, t))


def infer(spec: Spec, t: Inputs) -> Tensor:
    y: Tensor = t.x.new_empty_strided(spec.y_shape, spec.y_stride)
    if spec.empty:
        return y
    from lightkernels.ops.condensed_conv2d import triton_launch

    with guard(t.x.device):
        triton_launch.fwd(spec, triton_launch.dense(t), y)
    return y


def bwd(spec: Spec, g: Tensor, t: Inputs, out: Outputs) -> tuple[Tensor, ...]:
    gx: Tensor = g.new_empty_strided(spec.x_shape, spec.dense_x_stride)
    grads = tuple(one.new_empty(tuple(one.shape)) for one in (t.weight, t.scale, t.shift))
    if spec.empty:
        return (gx, *(one.zero_() for one in grads))
    from lightkernels.ops.condensed_conv2d import triton_launch

    with guard(g.device):
        triton_launch.bwd(spec, g, triton_launch.dense(t), gx, *grads)
    return (gx, *grads)

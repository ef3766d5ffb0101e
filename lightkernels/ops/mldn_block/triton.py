"""The Triton backend: forward, evaluation and backward by own kernels.

Importing this does not import Triton: `why_not` does, and the kernels come on first use.
"""

from __future__ import annotations

from torch import Tensor

from lightkernels._core.triton_host import GRID_LIMIT, guard, unsuited
from lightkernels.ops.mldn_block import composite
from lightkernels.ops.mldn_block.spec import Inputs, Outputs, Spec

LIMIT = GRID_LIMIT - 2**16  # of what the kernels count in 32 bits; a last tile may go beyond


def why_not(spec: Spec) -> str | None:
    reason = unsuited(spec.device)
    if reason is not None:
        return reason
    many = spec.layers * spec.paths * spec.kappa * spec.mid
    counts = {
        "pixels": spec.n * spec.h * spec.w,
        "weights": max(max(spec.mid, spec.kappa) * spec.columns, many * max(spec.taps, spec.kernel_size**2)),
        "values of moments": -(-spec.n * spec.h * spec.w // 32) * 2 * spec.paths * max(spec.mid, spec.widths[-1]),
    }
    for name, count in counts.items():
        if count > LIMIT:
            return f"the call has {count} {name}, more than {LIMIT}"
    return None


def config_text(spec: Spec) -> str:
    """For `explain`."""
    how = "each path's taps" if spec.sets <= 1 else "the whole window, as filters have taps of their own"
    if spec.version == 2:
        return f"three kernels a layer, {how}; in the backward twelve, after the forward's again"
    return f"two kernels a layer, {how}; in the backward nine"


def _buffer(spec: Spec, t: Inputs) -> Tensor:
    y: Tensor = t.x.new_empty_strided(spec.y_shape, spec.y_stride)
    spec.prefix(y).copy_(spec.by_path(t.x))
    return y


def fwd(spec: Spec, t: Inputs) -> Outputs:
    if spec.empty:
        return composite.fwd(spec, t)
    from lightkernels.ops.mldn_block import triton_launch

    with guard(t.x.device):
        return triton_launch.fwd(spec, t, _buffer(spec, t))


def infer(spec: Spec, t: Inputs) -> Tensor:
    return fwd(spec, t).y


def bwd(spec: Spec, g: Tensor, t: Inputs, out: Outputs) -> tuple[Tensor | None, ...]:
    if spec.empty:
        return composite.bwd(spec, g, t, out)
    from lightkernels.ops.mldn_block import triton_launch_back, triton_launch_second

    launches = triton_launch_back if spec.version == 1 else triton_launch_second
    with guard(g.device):
        found: tuple[Tensor | None, ...] = launches.bwd(spec, g, t, out)
    return found

"""The Triton backend: forward and evaluation by own kernels, two a layer; the backward is `composite`'s.

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
    if spec.version != 1:
        return "version 2 has no kernels yet"
    if spec.index_groups:
        return "the condensed form has no kernels yet"
    many = spec.layers * spec.paths * spec.kappa * spec.mid
    counts = {
        "pixels": spec.n * spec.h * spec.w,
        "weights": max(spec.mid * spec.columns, many * max(spec.taps, spec.kernel_size**2)),
        "values of moments": -(-spec.n * spec.h * spec.w // 32) * 2 * spec.paths * max(spec.mid, spec.kappa),
    }
    for name, count in counts.items():
        if count > LIMIT:
            return f"the call has {count} {name}, more than {LIMIT}"
    return None


def config_text(spec: Spec) -> str:
    """For `explain`."""
    how = "each path's taps" if spec.sets <= 1 else "the whole window, as filters have taps of their own"
    return f"two kernels a layer, {how}; the backward by PyTorch's calls, as on the torch backend"


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


bwd = composite.bwd

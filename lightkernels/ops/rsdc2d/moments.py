"""Sums over a convolution's outputs and a gradient, taken where the outputs are made, which are never stored."""

from __future__ import annotations

from torch import Tensor

from lightkernels.ops.rsdc2d import native
from lightkernels.ops.rsdc2d.op import OP


def rsdc2d_moments(
    x: Tensor, weight: Tensor, taps: Tensor, g: Tensor, *, groups: int, shuffled: int = 1
) -> Tensor | None:
    """Float64 ``[4, c_out]``: by channel of ``y = rsdc2d(x, weight, taps, kernel_size=3, groups=groups)`` the mean, the
    variance (of the population), the sum of g, and that of ``g * (y - mean)``.

    g is float32 and of y's shape, with the channels in the order that a shuffle into `shuffled` groups gives.
    Without graph, for float32 on the CPU in NCHW; None where kernels compute y in a way that cannot take sums.
    """
    # In tuples, so that the memo of plans finds them as they are.
    args = (taps, len(weight), 3, (1, 1), (1, 1), (1, 1), groups)
    plan = OP.plan_of("fwd", x, weight, None, args, None)
    if plan.names["fwd"] != "cpu":
        return None
    return native.moments(plan.spec, x, weight, taps, g, shuffled)

"""The Triton backend. Importing this does not import Triton: `why_not` does, and the kernels come on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from lightkernels._core.triton_host import GRID_LIMIT, guard, unsuited
from lightkernels.ops.multi_dwconv2d.triton_config import Grid, config_of, dot_conv, groups_of, plane

if TYPE_CHECKING:
    from lightkernels.ops.multi_dwconv2d.op import Spec


def why_not(spec: Spec) -> str | None:
    reason = unsuited(spec.device)
    if reason is not None:
        return reason
    # Tiles hold at least 16 columns of a row, or at least 16 pixels or channels where rows are short.
    if spec.n * spec.c * spec.h * -(-spec.w // 16) > GRID_LIMIT:
        return f"the call may need more than {GRID_LIMIT} programs"
    return None


def config_text(spec: Spec) -> str:
    """The tiles, for `explain`."""
    forward = Grid(None, spec.ho, spec.wo, spec.y_stride[2], spec.y_stride[3], 0)
    groups = groups_of(spec)
    planes = [plane(spec, group, False, spec.x_stride) for group in groups]
    dots = planes if all(planes) else [dot_conv(spec, group, forward, spec.x_shape, spec.x_stride) for group in groups]
    parts = [f"fwd on tensor cores {tuple(dot)}" for dot in dots if dot is not None]
    for kind in ("fwd", "bwd_x", "bwd_w")[all(dot is not None for dot in dots) :]:
        th, bc, bw, warps = config_of(spec, kind)
        parts.append(f"{kind} {th} rows x {bc} channels x {bw} columns, {warps} warps")
    return "; ".join(parts)


def fwd(spec: Spec, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    from lightkernels.ops.multi_dwconv2d import triton_launch

    y = x.new_empty_strided(spec.y_shape, spec.y_stride)
    if y.numel() == 0:
        return y
    w, b = w.contiguous(), None if b is None else b.contiguous()
    grid = Grid(None, spec.ho, spec.wo, y.stride(2), y.stride(3), 0)
    with guard(x.device):
        for group in groups_of(spec):
            if not triton_launch.plane(spec, group, False, x, w, b, y):
                triton_launch.conv(spec, group, "fwd", grid, x, w, b, y)
    return y


def bwd_x(spec: Spec, g: Tensor, w: Tensor) -> Tensor:
    from lightkernels.ops.multi_dwconv2d import triton_launch

    gx = g.new_empty_strided(spec.x_shape, spec.dense_x_stride)
    if gx.numel() == 0:
        return gx
    w = w.contiguous()
    sh, sw = spec.stride
    with guard(g.device):
        for group in groups_of(spec):
            if triton_launch.plane(spec, group, True, g, w, None, gx):
                continue
            for a in range(min(sh, spec.h)):
                for e in range(min(sw, spec.w)):
                    start = a * gx.stride(2) + e * gx.stride(3)
                    size = -(-(spec.h - a) // sh), -(-(spec.w - e) // sw)
                    grid = Grid((a, e), *size, sh * gx.stride(2), sw * gx.stride(3), start)
                    triton_launch.conv(spec, group, "bwd_x", grid, g, w, None, gx)
    return gx


def bwd_w(spec: Spec, g: Tensor, x: Tensor) -> Tensor:
    from lightkernels.ops.multi_dwconv2d import triton_launch

    gw = x.new_empty(spec.weight_shape)
    if g.numel() == 0:
        return gw.zero_()
    with guard(x.device):
        triton_launch.grad(spec, g, x, gw)
    return gw

"""The Triton backend. Importing this does not import Triton: `why_not` does, and the kernels come on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightkernels._core.triton_host import GRID_LIMIT, guard, unsuited
from lightkernels.ops.rsdc2d import triton_config as config
from lightkernels.ops.rsdc2d.reference import without_terms

if TYPE_CHECKING:
    from lightkernels.ops.rsdc2d.op import Spec

LIMIT = GRID_LIMIT - 2**16  # of what the kernels count in 32 bits; a last tile may go beyond


def why_not(spec: Spec) -> str | None:
    reason = unsuited(spec.device)
    if reason is not None:
        return reason
    if spec.scope == "filter" and not config.tiny(spec):
        return "every filter has taps of its own, which together cover most of the window: a masked dense convolution"
    counts = {
        "pixels": spec.n * max(spec.h * spec.w, spec.ho * spec.wo),
        "weights": spec.c_out * (spec.c // spec.groups) * spec.taps,
        "offsets": spec.dilation[0] * spec.kernel_size + max(spec.h, spec.ho * spec.stride[0]) + spec.padding[0],
    }
    counts["offsets"] += spec.dilation[1] * spec.kernel_size + max(spec.w, spec.wo * spec.stride[1]) + spec.padding[1]
    for name, count in counts.items():
        if count > LIMIT:
            return f"the call has {count} {name}, more than {LIMIT}"
    if programs(spec) > GRID_LIMIT:
        return f"the call may need more than {GRID_LIMIT} programs"
    return None


def programs(spec: Spec) -> int:
    """At most so many are launched at once: tiles hold at least 32 pixels and 16 channels, or one channel."""
    least = 1 if config.direct(spec) else 16
    channels = max(spec.c, spec.c_out)
    each = channels if least == 1 else spec.groups * -(-channels // spec.groups // least)
    pixels = spec.n * max(spec.ho * spec.wo, (spec.h + spec.stride[0]) * (spec.w + spec.stride[1]))
    return (pixels // 32 + config.phases(spec) + 1) * each


def copies(spec: Spec) -> str | None:
    """What is copied before a kernel runs, for ``explain``."""
    if not config.direct(spec) and _moved(spec, spec.x_stride, spec.c):
        return "x is copied into channels_last: the matrix product reads a pixel's channels side by side"
    return None


def config_text(spec: Spec) -> str:
    """The tiles, for `explain`."""
    if config.direct(spec):
        return "; ".join(f"{kind} element-wise {tuple(config.direct_tile(spec, kind))}" for kind in ("fwd", "bwd_x"))
    tiles = {kind: tuple(config.conv_tile(spec, kind)) for kind in ("fwd", "bwd_x")}
    return "; ".join(f"{k} on tensor cores {t}" for k, t in {**tiles, "bwd_w": tuple(config.grad_tile(spec))}.items())


def _moved(spec: Spec, stride: tuple[int, ...], channels: int) -> bool:
    """Whether the matrix products take a copy: channels are many and do not lie side by side."""
    return stride[1] != 1 and channels // spec.groups >= config.NARROW


def _rows(spec: Spec, t: Tensor) -> Tensor:
    """``t`` as the kernels read it."""
    if config.direct(spec) or not _moved(spec, t.stride(), t.shape[1]):
        return t
    return t.contiguous(memory_format=torch.channels_last)


def fwd(spec: Spec, x: Tensor, w: Tensor, b: Tensor | None, taps: Tensor) -> Tensor:
    from lightkernels.ops.rsdc2d import triton_launch

    y = x.new_empty_strided(spec.y_shape, spec.y_stride)
    if spec.empty:
        return without_terms(y, b)
    with guard(x.device):
        bias = None if b is None else b.contiguous()
        triton_launch.conv(spec, "fwd", _rows(spec, x), w.contiguous(), bias, taps.contiguous(), y)
    return y


def bwd_x(spec: Spec, g: Tensor, w: Tensor, taps: Tensor) -> Tensor:
    from lightkernels.ops.rsdc2d import triton_launch

    gx = g.new_empty_strided(spec.x_shape, spec.dense_x_stride)
    if spec.empty:
        return gx.zero_()
    with guard(g.device):
        triton_launch.conv(spec, "bwd_x", _rows(spec, g), w.contiguous(), None, taps.contiguous(), gx)
    return gx


def bwd_w(spec: Spec, g: Tensor, x: Tensor, taps: Tensor) -> Tensor:
    from lightkernels.ops.rsdc2d import triton_launch

    gw = x.new_empty(spec.weight_shape)
    if spec.empty:
        return gw.zero_()
    with guard(x.device):
        triton_launch.grad(spec, _rows(spec, g), _rows(spec, x), taps.contiguous(), gw)
    return gw

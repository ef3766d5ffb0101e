"""The definition: x shifted by every tap, weighted, summed. Nothing is multiplied by a cell that is no tap.

``cells`` holds every filter's shifted inputs side by side, so that the sum is one 1x1 convolution; every call is one
of tensors, the taps' values included, so the definition can be traced, batched and differentiated like any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
import torch.nn.grad
from torch import Tensor

if TYPE_CHECKING:
    from lightkernels.ops.rsdc2d.op import Spec

Pair = tuple[int, int]


def forward(
    x: Tensor,
    weight: Tensor,
    taps: Tensor,
    bias: Tensor | None = None,
    *,
    kernel_size: int,
    stride: int | Pair = 1,
    padding: int | Pair | str = "same",
    dilation: int | Pair = 1,
    groups: int = 1,
) -> Tensor:
    """What ``rsdc2d`` means; differentiable, for any device and dtype that F.conv2d takes."""
    s, d = _pair(stride), _pair(dilation)
    p = (d[0] * (kernel_size // 2), d[1] * (kernel_size // 2)) if isinstance(padding, str) else _pair(padding)
    h, w = (
        (x.shape[2 + i] + 2 * p[i] - d[i] * (kernel_size - 1) - 1) // s[i] + 1 for i in range(2)
    )  # fmt: skip
    index = places(taps, x.shape[3] + 2 * p[1], (h, w), kernel_size, s, d)
    wide = F.pad(x, (p[1], p[1], p[0], p[0])).flatten(2)
    many = weight.shape[0] if _own(taps, groups, weight.shape[0]) else groups
    y = F.conv2d(cells(wide, index, groups, many, (h, w)), weight.flatten(1)[:, :, None, None], None, groups=many)
    return y if bias is None else y + bias[:, None, None]


def _pair(value: int | Pair) -> Pair:
    return (value, value) if isinstance(value, int) else value


def _own(taps: Tensor, groups: int, filters: int) -> bool:
    """Whether every filter has its own set of cells."""
    return taps.shape[0] == filters and filters not in (1, groups)


def places(taps: Tensor, width: int, size: Pair, k: int, stride: Pair, dilation: Pair) -> Tensor:
    """[S, T, ho * wo]: where in the padded image, flattened, each tap of each output is."""
    rows = torch.arange(size[0], device=taps.device) * (stride[0] * width)
    columns = torch.arange(size[1], device=taps.device) * stride[1]
    base = (rows[:, None] + columns).flatten()
    shift = taps // k * (dilation[0] * width) + taps % k * dilation[1]
    return shift[:, :, None] + base


def _index(index: Tensor, groups: int, many: int, channels: int) -> Tensor:
    """[1, many, channels, T * ho * wo], of the set of each of the 1x1 convolution's groups."""
    return index.flatten(1)[None, :, None].expand(1, many, channels, -1)


def cells(wide: Tensor, index: Tensor, groups: int, many: int, size: Pair) -> Tensor:
    """[N, many * C/groups * T, ho, wo] out of the padded image [N, C, H * W]."""
    n, c, area = wide.shape
    part = c // groups
    each = wide.view(n, groups, 1, part, area).expand(n, groups, many // groups, part, area)
    each = each.reshape(n, many, part, area)
    at = _index(index, groups, many, part).expand(n, many, part, -1)
    return each.gather(3, at).reshape(n, many * part * index.shape[1], *size)


def why_not(spec: Spec) -> str | None:
    return None


def as_output(spec: Spec, t: Tensor) -> Tensor:
    """``t`` in the call's dtype, dense in its layout with exactly the strides that the contract promises."""
    return t if t.stride() == spec.y_stride and t.dtype == spec.dtype else _dense(spec, t)


def as_input(spec: Spec, t: Tensor) -> Tensor:
    return t if t.stride() == spec.dense_x_stride and t.dtype == spec.dtype else _dense(spec, t)


def _dense(spec: Spec, t: Tensor) -> Tensor:
    # A copy, not contiguous(), which leaves the strides of dimensions of size 1 as they are.
    form = torch.channels_last if spec.layout == "nhwc" else torch.contiguous_format
    return t.to(spec.dtype, copy=True, memory_format=form)


def without_terms(y: Tensor, b: Tensor | None) -> Tensor:
    """The outputs of images without pixels, which padding makes many all the same: the bias."""
    return y.zero_() if b is None else y.copy_(b[:, None, None].expand(y.shape))


def fwd(spec: Spec, x: Tensor, w: Tensor, b: Tensor | None, taps: Tensor) -> Tensor:
    y = forward(
        x,
        w,
        taps,
        b,
        kernel_size=spec.kernel_size,
        stride=spec.stride,
        padding=spec.padding,
        dilation=spec.dilation,
        groups=spec.groups,
    )
    return as_output(spec, y)


def _geometry(spec: Spec, taps: Tensor) -> tuple[Pair, Tensor, int]:
    """Size of the padded image, index of the taps in it, groups of the 1x1 convolution."""
    size = (spec.h + 2 * spec.padding[0], spec.w + 2 * spec.padding[1])
    index = places(taps, size[1], (spec.ho, spec.wo), spec.kernel_size, spec.stride, spec.dilation)
    return size, index, spec.c_out if spec.scope == "filter" else spec.groups


def bwd_x(spec: Spec, g: Tensor, w: Tensor, taps: Tensor) -> Tensor:
    (height, width), index, many = _geometry(spec, taps)
    part = spec.c // spec.groups
    shape = (spec.n, many * part * spec.taps, spec.ho, spec.wo)
    gathered = torch.nn.grad.conv2d_input(shape, w.flatten(1)[:, :, None, None], g, groups=many)
    at = _index(index, spec.groups, many, part).expand(spec.n, many, part, -1)
    wide = g.new_zeros(spec.n, many, part, height * width)
    wide = wide.scatter_add(3, at, gathered.reshape(at.shape))
    wide = wide.view(spec.n, spec.groups, many // spec.groups, part, height, width).sum(2)
    top, left = spec.padding
    inner = wide.view(spec.n, spec.c, height, width)[:, :, top : top + spec.h, left : left + spec.w]
    return as_input(spec, inner)


def bwd_w(spec: Spec, g: Tensor, x: Tensor, taps: Tensor) -> Tensor:
    _, index, many = _geometry(spec, taps)
    top, left = spec.padding
    wide = F.pad(x, (left, left, top, top)).flatten(2)
    gathered = cells(wide, index, spec.groups, many, (spec.ho, spec.wo))
    shape = (spec.c_out, spec.c // spec.groups * spec.taps, 1, 1)
    dw: Tensor = torch.nn.grad.conv2d_weight(gathered, shape, g, groups=many)
    return dw.reshape(spec.weight_shape)

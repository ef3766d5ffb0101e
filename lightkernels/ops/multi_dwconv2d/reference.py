"""The definition: one depthwise F.conv2d a branch, then concatenated, summed or summed up to each branch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
import torch.nn.grad
from torch import Tensor

if TYPE_CHECKING:
    from lightkernels.ops.multi_dwconv2d.op import Row, Spec


def forward(
    x: Tensor,
    weights: Sequence[Tensor],
    bias: Tensor | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    dilations: int | Sequence[int] = 1,
    combine: str = "concat",
    split: bool = False,
) -> Tensor:
    """What ``multi_dwconv2d`` means; differentiable, for any device and dtype that F.conv2d takes."""
    rates = [dilations] * len(weights) if isinstance(dilations, int) else dilations
    inputs = x.split([w.shape[0] for w in weights], 1) if split else [x] * len(weights)
    step = stride if isinstance(stride, int) else stride[1]
    parts = []
    for part, w, d in zip(inputs, weights, rates, strict=True):
        a, b = _trusted(x.shape[-1], step, part, w)
        y = F.conv2d(a, b, stride=stride, padding=d * (w.shape[-1] // 2), dilation=d, groups=w.shape[0])
        parts.append(y if a is part else y.to(part.dtype))
    if combine == "add":
        y = sum(parts[1:], parts[0])
    elif combine == "cumulative":
        y = torch.cat(list(accumulate(parts)), 1)
    else:
        y = torch.cat(parts, 1)
    return y if bias is None else y + bias[:, None, None]


def _trusted(width: int, step: int, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Operands of a convolution as types whose gradients can be trusted; results are rounded to the call's own type.

    On processors with AVX512_BF16, oneDNN returns uninitialised memory as the channels_last weight gradient of a
    depthwise bfloat16 convolution of stride > 1 whose output is one column wide (torch 2.13). It is found only with
    memory that is not zero; github.com/pytorch/pytorch/issues/169688 has the same of a conv3d's forward.
    """
    if tensors[0].dtype is torch.bfloat16 and tensors[0].is_cpu and step > 1 and width <= step:
        return tuple(t.float() for t in tensors)
    return tensors


def why_not(spec: Spec) -> str | None:
    return None


def packed_sizes(channels: Sequence[int], kernel_sizes: Sequence[int]) -> list[int]:
    """How many elements of the packed weight each branch has; so many taps each pixel meets."""
    return [m * k * k for m, k in zip(channels, kernel_sizes, strict=True)]


def branch_weights(spec: Spec, w: Tensor) -> list[Tensor]:
    """The branches' [C_m, 1, k, k] weights out of the packed one."""
    sizes = packed_sizes(spec.channels, spec.kernel_sizes)
    return [p.view(-1, 1, k, k) for p, k in zip(w.reshape(-1).split(sizes), spec.kernel_sizes, strict=True)]


def in_layout(spec: Spec, t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last if spec.layout == "nhwc" else torch.contiguous_format)


def as_output(spec: Spec, t: Tensor) -> Tensor:
    """``t`` in the call's dtype, dense in its layout with exactly the strides that the contract promises."""
    return t if t.stride() == spec.y_stride and t.dtype == spec.dtype else _dense(spec, t)


def as_input(spec: Spec, t: Tensor) -> Tensor:
    return t if t.stride() == spec.dense_x_stride and t.dtype == spec.dtype else _dense(spec, t)


def _dense(spec: Spec, t: Tensor) -> Tensor:
    # A copy, not contiguous(), which leaves the strides of dimensions of size 1 as they are.
    form = torch.channels_last if spec.layout == "nhwc" else torch.contiguous_format
    return t.to(spec.dtype, copy=True, memory_format=form)


def branch_gradients(spec: Spec, g: Tensor) -> list[Tensor]:
    """The gradient of each branch's own output."""
    if spec.combine == "add":
        return [g] * len(spec.channels)
    parts = list(g.split(list(spec.channels), 1))
    if spec.combine == "cumulative":
        return list(accumulate(reversed(parts)))[::-1]
    return parts


def branch_inputs(spec: Spec, x: Tensor) -> list[Tensor]:
    return list(x.split(list(spec.channels), 1)) if spec.split else [x] * len(spec.channels)


def fwd(spec: Spec, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    y = forward(
        x,
        branch_weights(spec, w),
        b,
        stride=spec.stride,
        dilations=spec.dilations,
        combine=spec.combine,
        split=spec.split,
    )
    return as_output(spec, y)


def bwd_x(spec: Spec, g: Tensor, w: Tensor) -> Tensor:
    total = g.new_zeros(spec.x_shape)
    branches = zip(spec.rows(), branch_gradients(spec, g), branch_weights(spec, w), strict=True)
    for row, part, weight in branches:
        size = (spec.n, row.channels, spec.h, spec.w)
        dx = torch.nn.grad.conv2d_input(size, weight, part, **_conv(spec, row))
        total[:, row.in_start : row.in_start + row.channels] += dx
    return as_input(spec, total)


def bwd_w(spec: Spec, g: Tensor, x: Tensor) -> Tensor:
    parts = []
    for row, part, grad in zip(spec.rows(), branch_inputs(spec, x), branch_gradients(spec, g), strict=True):
        part, grad = _trusted(spec.w, spec.stride[1], part, grad)
        shape = (row.channels, 1, row.kernel, row.kernel)
        dw = torch.nn.grad.conv2d_weight(part, shape, grad, **_conv(spec, row))
        parts.append(dw.to(x.dtype).reshape(-1))
    return torch.cat(parts)


def _conv(spec: Spec, row: Row) -> dict[str, object]:
    pad = row.dilation * (row.kernel // 2)
    return {"stride": spec.stride, "padding": pad, "dilation": row.dilation, "groups": row.channels}

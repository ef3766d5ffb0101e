"""The definition: pick channels, scale and shift, activation, grouped 1x1 convolution, channel shuffle."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
import torch.nn.grad
from torch import Tensor

from lightkernels.ops.condensed_conv2d.spec import Inputs, Outputs, Spec


def activate(z: Tensor, activation: str) -> Tensor:
    return F.relu(z) if activation == "relu" else z * (z + 3).clamp(0, 6) / 6


def by_group(weight: Tensor, groups: int) -> Tensor:
    """[Co, K], whose row o belongs to group o % G, as the weight of a grouped 1x1 convolution."""
    grouped: Tensor = weight.reshape(-1, groups, weight.shape[1]).transpose(0, 1)
    return grouped.flatten(0, 1)[:, :, None, None]


def shuffled(y: Tensor, groups: int) -> Tensor:
    """Channel (g, j) to place j G + g."""
    n, c, h, w = y.shape
    return y.reshape(n, groups, c // groups, h, w).transpose(1, 2).flatten(1, 2)


def forward(
    x: Tensor, weight: Tensor, index: Tensor, scale: Tensor, shift: Tensor, *, activation: str = "relu"
) -> Tensor:
    """What ``condensed_conv2d`` means; differentiable."""
    acc, groups = torch.promote_types(x.dtype, torch.float32), index.shape[0]
    picked = x.index_select(1, index.flatten()).to(acc)
    a = activate(picked * scale.to(acc)[:, None, None] + shift.to(acc)[:, None, None], activation)
    return shuffled(F.conv2d(a, by_group(weight.to(acc), groups), groups=groups), groups).to(x.dtype)


def run(spec: Spec, t: Inputs) -> Outputs:
    return Outputs(forward(t.x, t.weight, t.index, t.scale, t.shift, activation=spec.activation))


def why_not(spec: Spec) -> str | None:
    return None


def dense(spec: Spec, t: Tensor, stride: tuple[int, ...]) -> Tensor:
    """``t`` in the call's dtype with exactly the strides of its layout."""
    if t.stride() == stride and t.dtype == spec.dtype:
        return t
    form = torch.channels_last if spec.layout == "nhwc" else torch.contiguous_format
    return t.to(spec.dtype, copy=True, memory_format=form)


def fwd(spec: Spec, t: Inputs) -> Outputs:
    return Outputs(dense(spec, run(spec, t).y, spec.y_stride))


def slope(z: Tensor, activation: str) -> Tensor:
    """Of the activation."""
    if activation == "relu":
        return (z > 0).to(z.dtype)
    return ((2 * z + 3) / 6).where(z.abs() < 3, (z > 0).to(z.dtype))


def bwd(
    spec: Spec, g: Tensor, t: Inputs, out: Outputs, weight_gradient: Callable[..., Tensor] | None = None
) -> tuple[Tensor, ...]:
    """``weight_gradient``: in the place of PyTorch's, whose sums change with threads and addresses."""
    acc, groups, index = spec.acc_dtype, spec.groups, t.index.flatten()
    scale, shift = t.scale[:, None, None], t.shift[:, None, None]
    picked = t.x.index_select(1, index).to(acc)
    z = picked * scale + shift
    a, weight = activate(z, spec.activation), by_group(t.weight.to(acc), groups)
    # The shuffle's inverse is the shuffle of the other factor.
    gy = shuffled(g.to(acc), spec.c_out // groups)
    ga = torch.nn.grad.conv2d_input(a.shape, weight, gy, groups=groups)
    gz = ga * slope(z, spec.activation)
    gx = gz.new_zeros(spec.x_shape).index_add(1, index, gz * scale)
    gweight = (weight_gradient or _weight_gradient)(spec, g, t, a, gy)
    return dense(spec, gx, spec.dense_x_stride), gweight, (gz * picked).sum((0, 2, 3)), gz.sum((0, 2, 3))


def _weight_gradient(spec: Spec, g: Tensor, t: Inputs, a: Tensor, gy: Tensor) -> Tensor:
    gw: Tensor = torch.nn.grad.conv2d_weight(a, (spec.c_out, spec.picked, 1, 1), gy, groups=spec.groups)
    return gw.view(spec.groups, -1, spec.picked).transpose(0, 1).reshape(t.weight.shape).to(spec.dtype)

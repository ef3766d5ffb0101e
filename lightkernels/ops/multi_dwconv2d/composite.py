"""The best that PyTorch's own operators do: one convolution a branch, one merged convolution for ``add``.

On the CPU, 16-bit tensors are computed in float32 and rounded once: PyTorch's own 16-bit path rounds every branch,
and without AVX-512 it is up to a hundred times slower.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
import torch.nn.grad
from torch import Tensor

from lightkernels.ops.multi_dwconv2d import reference
from lightkernels.ops.multi_dwconv2d.reference import as_input, as_output, branch_weights, in_layout

if TYPE_CHECKING:
    from lightkernels.ops.multi_dwconv2d.op import Spec


def why_not(spec: Spec) -> str | None:
    return None


def _merges(spec: Spec) -> bool:
    """Whether ``add`` is one convolution with a dense kernel: its hull has no more taps than the branches together."""
    if spec.combine != "add":
        return False
    hull = 2 * _radius(spec) + 1
    return hull * hull <= sum(k * k for k in spec.kernel_sizes)


def _radius(spec: Spec) -> int:
    return max(d * (k // 2) for k, d in zip(spec.kernel_sizes, spec.dilations, strict=True))


def _wide(spec: Spec, t: Tensor) -> Tensor:
    small = spec.dtype in (torch.bfloat16, torch.float16)
    return t.float() if small and spec.device == "cpu" else t


def merged_weight(spec: Spec, w: Tensor) -> Tensor:
    """[C, 1, K, K]: every branch's kernel, spread by its dilation, in the centre of the hull, summed."""
    radius = _radius(spec)
    hull = 2 * radius + 1
    total = w.new_zeros(spec.c, 1, hull, hull)
    for part, k, d in zip(branch_weights(spec, w), spec.kernel_sizes, spec.dilations, strict=True):
        start = radius - d * (k // 2)
        stop = hull - start
        total[:, :, start:stop:d, start:stop:d] += part
    return total


def _split_merged(spec: Spec, merged: Tensor) -> Tensor:
    radius = _radius(spec)
    parts = []
    for k, d in zip(spec.kernel_sizes, spec.dilations, strict=True):
        start = radius - d * (k // 2)
        stop = merged.shape[-1] - start
        parts.append(merged[:, :, start:stop:d, start:stop:d].reshape(-1))
    return torch.cat(parts)


def fwd(spec: Spec, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    if spec.empty:  # PyTorch takes no images without rows, columns or channels
        return x.new_empty_strided(spec.y_shape, spec.y_stride)
    x, w = _wide(spec, x), _wide(spec, w)
    b = None if b is None else _wide(spec, b)
    if _merges(spec):
        y = F.conv2d(x, merged_weight(spec, w), b, spec.stride, _radius(spec), groups=spec.c)
        return as_output(spec, y)
    y = reference.forward(
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
    if spec.empty:
        return g.new_empty_strided(spec.x_shape, spec.dense_x_stride)
    g, w = _wide(spec, g), _wide(spec, w)
    if _merges(spec):
        weight = merged_weight(spec, w)
        g = in_layout(spec, g)
        dx = torch.nn.grad.conv2d_input(spec.x_shape, weight, g, spec.stride, _radius(spec), groups=spec.c)
        return as_input(spec, dx)
    return reference.bwd_x(spec, g, w)


def bwd_w(spec: Spec, g: Tensor, x: Tensor) -> Tensor:
    if spec.empty:
        return x.new_zeros(spec.weight_shape)
    g, x = _wide(spec, g), _wide(spec, x)
    if _merges(spec):
        radius = _radius(spec)
        shape = (spec.c, 1, 2 * radius + 1, 2 * radius + 1)
        dk = torch.nn.grad.conv2d_weight(x, shape, in_layout(spec, g), spec.stride, radius, groups=spec.c)
        return _split_merged(spec, dk).to(spec.dtype)
    return reference.bwd_w(spec, g, x).to(spec.dtype)

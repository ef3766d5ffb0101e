"""The definition, in plain PyTorch: ``y[n, c, i, j] = weight[c] * x[n, c, i, j] + bias[c]``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .op import Spec


def forward(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """What the operator means; differentiable."""
    y = x * weight[:, None, None]
    return y if bias is None else y + bias[:, None, None]


def why_not(spec: Spec) -> str | None:
    return None


def _as_output(spec: Spec, t: Tensor) -> Tensor:
    """``t``, dense in the call's layout with exactly the strides that the contract promises."""
    form = torch.channels_last if spec.layout == "nhwc" else torch.contiguous_format
    return t if t.stride() == spec.y_stride else t.to(spec.dtype, copy=True, memory_format=form)


def fwd(spec: Spec, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    return _as_output(spec, forward(x, w, b))


def bwd_x(spec: Spec, g: Tensor, w: Tensor) -> Tensor:
    return _as_output(spec, g * w[:, None, None])


def bwd_w(spec: Spec, g: Tensor, x: Tensor) -> Tensor:
    return (g * x).sum((0, 2, 3))

"""The definition, in plain PyTorch: ``y[n, c, i, j] = weight[c] * x[n, c, i, j] + bias[c]``."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    return t.new_empty_strided(spec.y_shape, spec.y_stride).copy_(t)


def fwd(spec: Spec, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    return _as_output(spec, forward(x, w, b))


def bwd_x(spec: Spec, g: Tensor, w: Tensor) -> Tensor:
    return _as_output(spec, g * w[:, None, None])


def bwd_w(spec: Spec, g: Tensor, x: Tensor) -> Tensor:
    return (g * x).sum((0, 2, 3))

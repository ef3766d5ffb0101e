"""Shake-Shake regularisation (Gastaldi 2017): two branches under random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class _Mix(torch.autograd.Function):
    """alpha * a + (1 - alpha) * b forward; the gradient is shared out by beta instead."""

    @staticmethod
    def forward(a: Tensor, b: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        return torch.lerp(b, a, alpha)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[3])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, None, None]:
        (beta,) = ctx.saved_tensors
        (grad,) = grads
        return beta * grad, (1 - beta) * grad, None, None


def shake_shake(a: Tensor, b: Tensor, training: bool) -> Tensor:
    """Training: one uniform alpha an image forward and an independent beta backward. Evaluation: the mean of both.

    Shapes: two tensors ``[N, C, H, W]``, the same out. Equivalent to: ``(a + b) / 2`` in evaluation.

    >>> import torch
    >>> from lightkernels.models.shake_shake import shake_shake
    >>> shake_shake(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1), training=False).item()
    0.5
    """
    if not training:
        return 0.5 * (a + b)
    shape = (a.shape[0], 1, 1, 1)
    # torch.rand, not uniform_: compiled, two equal calls of uniform_ are merged into one.
    alpha, beta = (torch.rand(shape, dtype=a.dtype, device=a.device) for _ in range(2))
    out: Tensor = _Mix.apply(a, b, alpha, beta)  # type: ignore[no-untyped-call]
    return out


class OffsetShortcut(nn.Module):
    """ReLU, two subsamplings one pixel apart, 1x1 to half the channels each, concat, BN."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.stride = stride
        self.conv1 = nn.Conv2d(in_channels, half, 1, bias=False)
        self.conv2 = nn.Conv2d(in_channels, out_channels - half, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(x)
        # Pixel (s i, s j) and its lower right neighbour, zero past the border.
        shifted = functional.pad(x, (-1, 1, -1, 1))
        step = self.stride
        halves = self.conv1(x[:, :, ::step, ::step]), self.conv2(shifted[:, :, ::step, ::step])
        out: Tensor = self.norm(torch.cat(halves, dim=1))
        return out

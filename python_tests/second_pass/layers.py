"""Pieces that the four families share. Each reads its tensors from `Weights` as the data flows through it."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .weights import Weights

EPS = 1e-5


def batch_norm(w: Weights, x: Tensor, training: bool) -> Tensor:
    gamma, beta, mean, variance = w.bn(x.shape[1])
    if training:
        count = x.shape[0] * x.shape[2] * x.shape[3]
        mean = x.sum((0, 2, 3)) / count
        variance = ((x - mean[:, None, None]) ** 2).sum((0, 2, 3)) / count
    scale = gamma / torch.sqrt(variance + EPS)
    return (x - mean[:, None, None]) * scale[:, None, None] + beta[:, None, None]


def conv(w: Weights, x: Tensor, out: int, k: int, *, stride: int = 1, bias: bool = False) -> Tensor:
    weight = w.conv(out, x.shape[1], k)
    return F.conv2d(x, weight, w.bias(out) if bias else None, stride, k // 2)


def portions(channels: int, parts: int) -> list[int]:
    """Equal parts; the remainder goes to the first."""
    part = channels // parts
    return [channels - part * (parts - 1)] + [part] * (parts - 1)


def depthwise(
    w: Weights,
    x: Tensor,
    kernels: Sequence[int],
    *,
    stride: int = 1,
    dilations: Sequence[int] | None = None,
    split: bool = False,
) -> list[Tensor]:
    """One map per branch; with `split` the branches take consecutive slices of the channels, else all of them."""
    inputs = torch.split(x, portions(x.shape[1], len(kernels)), 1) if split else [x] * len(kernels)
    maps = []
    for part, k, d in zip(inputs, kernels, dilations or [1] * len(kernels), strict=True):
        c = part.shape[1]
        maps.append(F.conv2d(part, w.conv(c, 1, k), None, stride, d * (k // 2), d, c))
    return maps


def classify(w: Weights, x: Tensor, classes: int) -> Tensor:
    """Global average pool and a linear layer with bias."""
    weight = w.linear(classes, x.shape[1])
    return F.linear(x.mean((2, 3)), weight, w.bias(classes))

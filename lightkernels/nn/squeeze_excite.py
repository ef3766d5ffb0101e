"""Channels scaled by what their means over the map say."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SqueezeExcite(nn.Module):
    """Scales each channel by a sigmoid of two linear layers (without bias) of the means over the map."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // reduction, bias=False)
        self.excite = nn.Linear(channels // reduction, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        return x * scale[:, :, None, None]

    def stated_count(self, convention: str, x: Tensor, y: Tensor) -> tuple[int, int]:
        weights = self.squeeze.weight.numel() + self.excite.weight.numel()
        # A mean reads every element, a ReLU costs 1 and a sigmoid 2.
        rest = x.numel() + self.squeeze.out_features + 2 * self.excite.out_features
        return weights, weights + (0 if convention == "macs" else rest)

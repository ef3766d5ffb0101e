"""A network of few layers with one of every kind that a reconstruction meets, and data for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Two convolutions and a sum; one ReLU module in two places, and a function in a third."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.project = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        return torch.relu(y + self.project(x))


class Net(nn.Module):
    """Images ``[N, 3, H, W]`` to ``[N, 4]``."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 1, 1)
        self.block1, self.block2 = Block(16, 16, 1), Block(16, 32, 2)
        self.depthwise = nn.Conv2d(32, 32, 3, 1, 1, groups=32)
        self.classify = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block2(self.block1(self.stem(x)))
        return self.classify(self.depthwise(x).mean((2, 3)))


SITES = ["block1.conv1", "block1.conv2", "block2.conv1", "block2.conv2"]


def network(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def images(number: int = 4) -> Tensor:
    return torch.randn(number, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def batches(number: int = 3) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(2)
    return [(torch.randn(8, 3, 8, 8, generator=draw), torch.randint(4, (8,), generator=draw)) for _ in range(number)]

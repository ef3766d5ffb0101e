"""The handwritten digits as loaders: what the command line and the benchmark compress on."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lightkernels.train import digits

REACH = 2


class Shuffled:
    """Batches of a split in a new order each epoch, every image shifted by up to two pixels; the last may be short.

    ``generator`` is all its randomness, so that a checkpoint can hold it.
    """

    def __init__(self, split: digits.Split, batch: int, seed: int = 0) -> None:
        self.split, self.batch, self.generator = split, batch, torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return -(-len(self.split) // self.batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for chosen in torch.randperm(len(self.split), generator=self.generator).split(self.batch):
            yield digits.shifted(self.split.images[chosen], REACH, self.generator), self.split.labels[chosen]


def loaders(batch: int = 64, seed: int = 0) -> tuple[Shuffled, list[tuple[Tensor, Tensor]]]:
    """1437 images to learn and 360 to test, 3x16x16."""
    train, test = digits.load()
    return Shuffled(train, batch, seed), list(zip(test.images.split(256), test.labels.split(256), strict=True))

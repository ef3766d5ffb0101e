"""The handwritten digits that scikit-learn ships: 1797 images of 8x8 pixels, so that nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

NAME = "sklearn digits, 16x16"
TEST_IMAGES = 360
SIZE = 16


@dataclass(frozen=True)
class Split:
    """Images ``[N, 3, 16, 16]`` with values from 0 to 1 in three equal channels, and labels ``[N]``."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Split:
        images = self.images.to(device).contiguous(memory_format=torch.channels_last)
        return Split(images, self.labels.to(device))


def load() -> tuple[Split, Split]:
    """Training and test split: 360 test images, every digit in its share, always the same ones."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    labels = torch.as_tensor(data.target, dtype=torch.int64)
    small = torch.as_tensor(data.images, dtype=torch.float32)[:, None] / 16
    images = F.interpolate(small, size=(SIZE, SIZE), mode="bilinear", align_corners=False).expand(-1, 3, -1, -1)
    train, test = train_test_split(range(len(labels)), test_size=TEST_IMAGES, stratify=data.target, random_state=0)
    return Split(images[train], labels[train]), Split(images[test], labels[test])


def shifted(images: Tensor, reach: int, generator: torch.Generator) -> Tensor:
    """Every image moved by its own whole number of pixels, at most ``reach`` each way, zeros moving in."""
    n, _, h, w = images.shape
    offset = torch.randint(0, 2 * reach + 1, (2, n), generator=generator).to(images.device)
    rows = offset[0, :, None] + torch.arange(h, device=images.device)
    columns = offset[1, :, None] + torch.arange(w, device=images.device)
    padded = F.pad(images, (reach,) * 4).permute(0, 2, 3, 1)
    which = torch.arange(n, device=images.device)[:, None, None]
    return padded[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

"""The calls that tests and benchmarks run, and the definition as plain loops."""

from __future__ import annotations

import torch
from torch import Tensor

from lightkernels.testing import Case, Draw, Sample


def case(name: str, shape: tuple[int, int, int, int], filters: int, groups: int, picked: int, tags: str = "") -> Case:
    """A row of the table: ``picked`` channels a group, drawn without repetition within a group."""

    def make(draw: Draw) -> Sample:
        x, weight = draw.image(*shape), draw.tensor(filters, picked)
        rows = [torch.randperm(shape[1], generator=draw.generator)[:picked].sort().values for _ in range(groups)]
        index = torch.stack(rows).to(draw.device)
        return Sample((x, weight, index, draw.tensor(groups * picked), draw.tensor(groups * picked)), {})

    return Case(name, make, frozenset(tags.split()))


def _bench() -> list[Case]:
    rows = []
    for c, side, filters in ((64, 32, 32), (240, 16, 64), (576, 8, 128)):
        rows.append(case(f"bench_{c}x{side}", (16, c, side, side), filters, 4, c // 4, "bench"))
    return rows


CASES: tuple[Case, ...] = (
    case("four_groups", (2, 8, 5, 6), 8, 4, 2, "core"),
    case("three_groups", (2, 7, 4, 5), 6, 3, 3, "core"),
    case("tiny", (1, 3, 2, 2), 4, 2, 2, "tiny"),
    case("empty_batch", (0, 4, 3, 5), 4, 2, 2),
    case("one_pixel", (3, 6, 1, 1), 10, 2, 3),
    case("one_group", (1, 5, 3, 7), 3, 1, 5),
    case("bulk", (2, 37, 13, 11), 88, 8, 9, "bulk"),
    case("bulk_four", (1, 64, 17, 19), 100, 4, 33, "bulk"),
    *_bench(),
)


def oracle(x: Tensor, weight: Tensor, index: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """The definition, one product after another, in Python floats."""
    n, _, h, w = x.shape
    groups, picked = index.shape
    y = torch.zeros(n, len(weight), h, w, dtype=torch.float64)
    pixels, weights, channels = x.tolist(), weight.tolist(), index.tolist()
    scales, shifts = (t.view(groups, picked).tolist() for t in (scale, shift))
    for b in range(n):
        for o, row in enumerate(weights):
            g = o % groups
            for i in range(h):
                for j in range(w):
                    total = 0.0
                    for k, factor in enumerate(row):
                        z = scales[g][k] * pixels[b][channels[g][k]][i][j] + shifts[g][k]
                        total += factor * max(z, 0.0)
                    y[b, o, i, j] = total
    return y

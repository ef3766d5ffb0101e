"""The calls that tests and benchmarks run, and the definition as plain loops."""

from __future__ import annotations

import torch
from torch import Tensor

from lightkernels.testing import Case, Draw, Sample


def _case(name: str, shape: tuple[int, int, int, int], tags: str = "", bias: bool = True) -> Case:
    def make(draw: Draw) -> Sample:
        c = shape[1]
        return Sample((draw.image(*shape), draw.tensor(c), draw.tensor(c) if bias else None), {})

    return Case(name, make, frozenset(tags.split()))


CASES: tuple[Case, ...] = (
    _case("plain", (2, 5, 4, 3), "core"),
    _case("without_bias", (2, 3, 5, 4), "core", bias=False),
    _case("tiny", (1, 2, 3, 2), "tiny"),
    _case("empty_batch", (0, 3, 4, 5)),
    _case("one_pixel", (2, 3, 1, 1)),
    _case("one_channel", (2, 1, 5, 6)),
    _case("bulk", (3, 33, 20, 21), "bulk"),
)


def oracle(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The definition, one product after another, in Python floats."""
    n, c, h, w = x.shape
    values, scale = x.tolist(), weight.tolist()
    shift = [0.0] * c if bias is None else bias.tolist()
    y = torch.zeros(n, c, h, w, dtype=torch.float64)
    for b in range(n):
        for m in range(c):
            for i in range(h):
                for j in range(w):
                    y[b, m, i, j] = scale[m] * values[b][m][i][j] + shift[m]
    return y

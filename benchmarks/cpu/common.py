"""What the rows are made of: targets, settings, the operator's bench cases, records of what was timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import lightkernels
from lightkernels._core import measure
from lightkernels.ops.multi_dwconv2d import baselines, cases

OP = "multi_dwconv2d"
QUICK = ("64x32x32x32", "8x96x56x56", "32x384x14x14")
Record = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """One figure of a row; ``goal`` None means that it is shown for information."""

    key: str
    label: str
    goal: float | None = None
    floor: float | None = None
    less: bool = False
    unit: str = "x"


@dataclass(frozen=True)
class Settings:
    """How much is measured. ``shapes`` None means all."""

    rounds: int = 5
    min_time: float = 0.05
    compile: bool = True
    shapes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Row:
    name: str
    title: str
    targets: tuple[Target, ...]
    run: Callable[[Settings], Iterator[Record]]


@dataclass(frozen=True)
class Problem:
    """One call of the operator in one dtype, with an output gradient."""

    shape: str
    x: Tensor
    weights: list[Tensor]
    g: Tensor
    combine: str

    @property
    def kernel_sizes(self) -> tuple[int, ...]:
        return tuple(w.shape[-1] for w in self.weights)

    def truth(self, kind: str) -> list[Tensor]:
        return baselines.truth(self.x, self.weights, self.g, self.combine, kind)

    def backend(self, entry: measure.Entry) -> str:
        fmt = torch.channels_last if entry.layout == "nhwc" else torch.contiguous_format
        x = self.x.contiguous(memory_format=fmt)
        return str(lightkernels.explain(OP, x, self.weights, combine=self.combine).chosen)


def problems(group: str, settings: Settings, dtype: torch.dtype = torch.float32) -> Iterator[Problem]:
    """The bench cases named ``bench_<group>_<shape>`` in the operator's table."""
    for case in cases.CASES:
        shape = case.name.removeprefix(f"bench_{group}_")
        if "bench" not in case.tags or shape == case.name:
            continue
        if settings.shapes is None or shape in settings.shapes:
            x, weights, _ = (sample := case.build(dtype=dtype)).args
            combine = sample.kwargs["combine"]
            channels = x.shape[1] * (1 if combine == "add" else len(weights))
            torch.manual_seed(1)
            g = torch.randn(x.shape[0], channels, *x.shape[2:]).to(dtype)
            yield Problem(shape, x, list(weights), g, combine)


def times(timing: measure.Timing) -> Record:
    return {
        "min": timing.min,
        "median": timing.median,
        "spread": round(timing.spread, 4),
        "samples": len(timing.samples),
        "faults": timing.faults,
    }


def value(key: str, layout: str, figure: float, median: float, against: str) -> Record:
    return {"key": key, "layout": layout, "value": figure, "median": median, "against": against}


def record(problem: Problem, result: measure.Result, values: list[Record], backends: dict[str, str]) -> Record:
    return {
        "shape": problem.shape,
        "dtype": str(problem.x.dtype).removeprefix("torch."),
        "kind": result.kind,
        "backends": backends,
        "times": {name: times(t) for name, t in result.timings.items()},
        "errors": {name: float(f"{e:.3g}") for name, e in result.errors.items()},
        "refused": result.refused,
        "values": values,
    }

"""What the rows are made of: targets, settings, the operator's bench cases, records of what was timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

import lightkernels
from lightkernels._core import measure
from lightkernels.ops.multi_dwconv2d import baselines, cases

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


class Problem(Protocol):
    """One call of an operator in one dtype, with an output gradient, and what is timed on it."""

    @property
    def shape(self) -> str: ...
    @property
    def x(self) -> Tensor: ...
    @property
    def weights(self) -> list[Tensor]: ...
    @property
    def g(self) -> Tensor: ...
    def truth(self, kind: str) -> list[Tensor]: ...
    def backend(self, entry: measure.Entry) -> str: ...
    def ours(self) -> list[measure.Entry]: ...
    def others(self, compile: bool) -> list[measure.Entry]: ...
    def also(self) -> list[measure.Entry]: ...


Problems = Callable[[Settings], Iterator[Problem]]


def laid_out(x: Tensor, layout: str) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last if layout == "nhwc" else torch.contiguous_format)


@dataclass(frozen=True)
class Depthwise:
    """A call of multi_dwconv2d."""

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
        x = laid_out(self.x, entry.layout)
        return str(lightkernels.explain("multi_dwconv2d", x, self.weights, combine=self.combine).chosen)

    def ours(self) -> list[measure.Entry]:
        return baselines.ours(self.combine)

    def others(self, compile: bool) -> list[measure.Entry]:
        return baselines.entries(
            self.kernel_sizes,
            self.combine,
            self.x.dtype,
            baselines.LAYOUTS if compile else (),
            sixteen="both",
        )

    def also(self) -> list[measure.Entry]:
        return []


def problems(group: str, settings: Settings, dtype: torch.dtype = torch.float32) -> Iterator[Depthwise]:
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
            yield Depthwise(shape, x, list(weights), g, combine)


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

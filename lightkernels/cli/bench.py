"""``lightkernels bench``: an operator's bench cases against the fair list of baselines, in this process."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from lightkernels import functional
from lightkernels._core import measure
from lightkernels.cli import info
from lightkernels.cli.explain import operators
from lightkernels.cli.terminal import console, heading, milliseconds, table
from lightkernels.train.files import atomic_write, writable

QUICK = ("64x32x32x32", "32x384x14x14")
LAYOUTS = ("nchw", "nhwc")


@dataclass(frozen=True)
class Options:
    """The command's options, in its order."""

    op: str
    shapes: str
    dtype: str
    csv: Path | None
    compile: bool
    threads: int


@dataclass(frozen=True)
class Problem:
    """One bench case; ``values`` are the call's arguments by name but for x and the weights."""

    name: str
    x: Tensor
    weights: list[Tensor]
    values: dict[str, Any]

    def given_to(self, function: Any) -> dict[str, Any]:
        """Those of the call's values that ``function`` takes."""
        values = {"kernel_sizes": [w.shape[-1] for w in self.weights], "dtype": self.x.dtype, **self.values}
        return {name: value for name, value in values.items() if name in inspect.signature(function).parameters}


def problems(op: str, shapes: str, dtype: torch.dtype) -> Iterator[Problem]:
    """The cases tagged "bench"; with ``shapes="quick"`` two shapes of each kind."""
    for case in importlib.import_module(f"lightkernels.ops.{op}.cases").CASES:
        if "bench" in case.tags and (shapes == "all" or case.name.rpartition("_")[2] in QUICK):
            sample = case.build(dtype=dtype)
            values = inspect.signature(getattr(functional, op)).bind(*sample.args, **sample.kwargs).arguments
            x, weights = (values.pop(name) for name in list(values)[:2])
            weights = [weights] if isinstance(weights, Tensor) else weights
            yield Problem(case.name.removeprefix("bench_"), x, weights, values)


def run(options: Options) -> int:
    """Prints the ratio to the best baseline of every case and pass; writes all times to the CSV file asked for."""
    out = console()
    known = operators()
    if options.op not in known:
        out.print(f"no operator is called {options.op!r}; there are {', '.join(known)}", markup=False)
        return 1
    if importlib.util.find_spec(f"lightkernels.ops.{options.op}.baselines") is None:
        where = "benchmarks/run.py in the source tree has what is timed of it, if anything"
        out.print(f"{options.op} has no baselines to be timed against here; {where}", markup=False)
        return 1
    if options.csv is not None:
        writable(options.csv.parent)
    measure.steady_memory()
    if options.threads:
        torch.set_num_threads(options.threads)
    compiled = options.compile and measure.has_compiler()
    out.print(
        f"{info.cpu()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {options.dtype}", markup=False
    )
    out.print(f"torch.compile: {'in the list' if compiled else 'not measured'}")
    heading(out, f"{options.op}: times as fast as the fastest of PyTorch's ways, in any layout")
    records = []
    for problem in problems(options.op, options.shapes, getattr(torch, options.dtype)):
        records += _case(out, options.op, problem, compiled)
    if options.csv is not None:
        _write(options.csv, records)
        out.print(f"\n{options.csv}", markup=False)
    return 0


def _case(out: Console, op: str, problem: Problem, compiled: bool) -> list[dict[str, Any]]:
    module = importlib.import_module(f"lightkernels.ops.{op}.baselines")
    entries = module.ours(**problem.given_to(module.ours))
    entries += measure.baselines(op, **problem.given_to(module.entries), compile=LAYOUTS if compiled else ())
    g = torch.randn_like(entries[0].forward(problem.x, problem.weights))
    made = table(
        problem.name, *(f"ours {layout}" for layout in LAYOUTS), "best of PyTorch", "", *LAYOUTS, right=(1, 2, 3)
    )
    records = []
    for kind in measure.PASSES:
        with out.status(f"{problem.name}, {kind}"):
            truth = module.truth(problem.x, problem.weights, g, kind=kind, **problem.given_to(module.truth))
            result = measure.contest(entries, kind, problem.x, problem.weights, g, truth)
        best, times = result.best(), {name: timing.min for name, timing in result.timings.items()}
        ratios = [times[best] / times[name] for name in result.ours]
        ours = [milliseconds(times[name]) for name in result.ours]
        marks = [f"[{'green' if ratio >= 1 else 'yellow'}]{ratio:.2f}x[/]" for ratio in ratios]
        made.add_row(kind, *ours, milliseconds(times[best]), best, *marks)
        for name, timing in result.timings.items():
            row = {
                "case": problem.name,
                "pass": kind,
                "candidate": name,
                "seconds": timing.min,
                "median": timing.median,
            }
            records.append(
                row | {"ours": int(name in result.ours), "best": best, "over_best": times[best] / timing.min}
            )
        for name, reason in result.refused.items():
            out.print(f"[yellow]{name} left out:[/] {reason}")
    out.print(made)
    return records


def _write(path: Path, records: list[dict[str, Any]]) -> None:
    with atomic_write(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]) if records else ["case"])
        writer.writeheader()
        writer.writerows(records)

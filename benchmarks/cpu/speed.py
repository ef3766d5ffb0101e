"""Ours against the fastest baseline, against torch.mm's arithmetic rate, and on two threads against one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from cpu.common import Problems, Record, Settings, problems, record, value
from lightkernels._core import measure
from lightkernels.ops.multi_dwconv2d import baselines


def speedup(
    found: Problems,
    kind: str,
    against: Mapping[str, Callable[[str], bool]] | None = None,
    compile: bool = False,
    price: Mapping[str, Callable[[str], bool]] | None = None,
) -> Callable[[Settings], Iterator[Record]]:
    """Ours in both layouts against the fastest of those whose label a filter accepts.

    ``against``: a figure is how many times faster ours is; ``price``: how many times their time ours takes.
    """
    chosen = [(k, f, False) for k, f in (against or {}).items()] + [(k, f, True) for k, f in (price or {}).items()]
    chosen = chosen or [("best", every, False)]

    def run(settings: Settings) -> Iterator[Record]:
        for problem in found(settings):
            torch._dynamo.reset()
            mine = problem.ours()
            result = measure.contest(
                [*mine, *problem.others(compile and settings.compile)],
                kind,
                problem.x,
                problem.weights,
                problem.g,
                problem.truth(kind),
                rounds=settings.rounds,
                min_time=settings.min_time,
                also=problem.also(),
            )
            values = []
            for key, accepts, inverse in chosen:
                labels = [n for n in result.timings if n not in result.ours and accepts(n)]
                for entry in mine if labels else ():
                    own = result.timings[entry.label]
                    best = {s: min(labels, key=lambda n: getattr(result.timings[n], s)) for s in ("min", "median")}
                    figures = {s: getattr(result.timings[n], s) / getattr(own, s) for s, n in best.items()}
                    if inverse:
                        figures = {s: 1 / f for s, f in figures.items()}
                    values.append(value(key, entry.layout, figures["min"], figures["median"], best["min"]))
            yield record(problem, result, values, {e.layout: problem.backend(e) for e in mine})

    return run


def depthwise(group: str, dtype: torch.dtype = torch.float32) -> Problems:
    return lambda settings: problems(group, settings, dtype)


def nchw(label: str) -> bool:
    return label.endswith(" nchw")


def nhwc(label: str) -> bool:
    return label.endswith(" nhwc")


def upcast(label: str) -> bool:
    return "upcast" in label


def every(label: str) -> bool:
    return True


def arithmetic(settings: Settings) -> Iterator[Record]:
    """Multiply-adds a second of the concat forward over torch.mm's, in the same turns."""
    a = {size: torch.randn(size, size) for size in (512, 1024, 2048)}
    for problem in problems("concat", settings):
        if problem.x.shape[1] < 32 or problem.x.shape[2:] != (32, 32):
            continue
        mine = baselines.ours(problem.combine)
        calls = {}
        errors = {}
        for entry in mine:
            call = entry.call("forward", problem.x, problem.weights, problem.g)
            errors[entry.label] = measure.check(entry.label, call(), problem.truth("forward"))
            calls[entry.label] = call
        for size, m in a.items():
            calls[f"torch.mm {size}"] = lambda m=m: torch.mm(m, m)
        timings = measure.interleaved(calls, rounds=2 * settings.rounds, min_time=settings.min_time)
        taps = sum(k * k for k in problem.kernel_sizes)
        flops = {entry.label: 2 * problem.x.numel() * taps for entry in mine}
        flops |= {f"torch.mm {size}": 2 * size**3 for size in a}
        rates = {s: {k: flops[k] / getattr(t, s) for k, t in timings.items()} for s in ("min", "median")}
        values = []
        for entry in mine:
            best = {s: max((r for k, r in rates[s].items() if k.startswith("torch.mm")), default=0.0) for s in rates}
            name = max((k for k in flops if k.startswith("torch.mm")), key=lambda k: rates["min"][k])
            figures = {s: rates[s][entry.label] / best[s] for s in rates}
            values.append(value("mm", entry.layout, figures["min"], figures["median"], name))
        result = measure.Result("forward", timings, errors, {}, tuple(e.label for e in mine))
        found = record(problem, result, values, {e.layout: problem.backend(e) for e in mine})
        found["gflops"] = {k: round(r / 1e9, 2) for k, r in rates["min"].items()}
        yield found


def scaling(settings: Settings) -> Iterator[Record]:
    """Two threads over one, ours, on the shapes whose work is far above a thread's start."""
    if torch.get_num_threads() < 2:
        return
    before = torch.get_num_threads()
    try:
        for kind in ("forward", "step"):
            for problem in problems("concat", settings):
                if problem.x.numel() < 2**20:
                    continue
                calls: dict[str, Any] = {}
                mine = baselines.ours(problem.combine)
                errors = {}
                for entry in mine:
                    call = entry.call(kind, problem.x, problem.weights, problem.g)
                    errors[entry.label] = measure.check(entry.label, entry.results(kind, call()), problem.truth(kind))
                    for threads in (1, 2):
                        calls[f"{entry.label} {threads} threads"] = measure.Candidate(
                            call, prepare=lambda threads=threads: torch.set_num_threads(threads)
                        )
                timings = measure.interleaved(calls, rounds=settings.rounds, min_time=settings.min_time)
                values = []
                for entry in mine:
                    one, two = (timings[f"{entry.label} {t} threads"] for t in (1, 2))
                    figures = one.min / two.min, one.median / two.median
                    values.append(value("threads", entry.layout, *figures, f"1 thread, {kind}"))
                result = measure.Result(kind, timings, errors, {}, tuple(timings))
                yield record(problem, result, values, {e.layout: problem.backend(e) for e in mine})
    finally:
        torch.set_num_threads(before)

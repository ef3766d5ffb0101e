"""``lightkernels tune``: which backend and tile is fastest for a call on this GPU. Writes the user's tuned files."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console

from lightkernels import ops
from lightkernels._core import tuning
from lightkernels._core.record import Recorder
from lightkernels._core.tuner import Call, Tuner, clock_of
from lightkernels.cli import named
from lightkernels.cli.bench import LAYOUTS
from lightkernels.cli.explain import operators
from lightkernels.cli.terminal import console, heading, milliseconds, table
from lightkernels.testing import Case

NETWORKS = ("mldn_222", "mldnv2_222")  # whose calls stand for an operator without bench cases of its own


@dataclass(frozen=True)
class Options:
    """The command's options, in its order."""

    names: Sequence[str]
    model: Sequence[str]
    shapes: str
    batch: int
    size: int
    dtypes: Sequence[str]
    tries: int
    device: str


def run(options: Options) -> int:
    """Times every call and saves after each, so that an interruption keeps what is done; prints the winners."""
    out = console()
    known = operators()
    unknown = [name for name in options.names if name not in known]
    if unknown:
        out.print(f"no operator is called {unknown[0]!r}; there are {', '.join(known)}", markup=False)
        return 1
    device = torch.device(options.device)
    if device.type != "cuda":
        out.print("tune is for GPUs: on the CPU, kernels and tiles follow from the sizes of a call", markup=False)
        return 1
    try:
        with torch.cuda.device(device):  # whose streams the clock's events are on
            return tune(out, device, options, Tuner(clock_of(device), tries=options.tries))
    except (ValueError, TypeError, ImportError) as error:  # ours say which argument is wrong and how to mend it
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"lightkernels: {error}", markup=False)
        return 1


def tune(out: Console, device: torch.device, options: Options, tuner: Tuner) -> int:
    """As ``run``, on any device and with any backends that ``tuner`` compares."""
    tuner.refused = lambda text: out.print(f"left out: {text}", markup=False)
    heading(out, f"{tuning.device_name(device)}: the fastest of {', '.join(tuner.names)}")
    done: set[str] = set()
    paths = set()
    for call in calls(device, options):
        title = f"{call.op.name} " + " ".join(f"{k}={v}" for k, v in tuning.key_of(call.spec).items())
        if title in done or 0 in call.spec.y_shape:
            continue
        done.add(title)
        found = list(tuner.entries(call))
        if found:
            paths.add(tuning.save(call.op.name, device, found))
            call.op.forget()
        _print(out, title, found, tuner.names)
    for path in sorted(paths):
        out.print(str(path), markup=False, soft_wrap=True)
    return 0


def calls(device: torch.device, options: Options) -> Iterator[Call]:
    """Of the operators, all unless some are named: in the models, if any are named, else their bench cases."""
    every = {name: getattr(ops, name).OP for name in options.names or operators()}
    for dtype in (getattr(torch, name) for name in options.dtypes):
        if options.model:
            for name in options.model:
                yield from _of_network(name, device, dtype, options, list(every.values()))
            continue
        for op in every:
            cases = [c for c in importlib.import_module(f"lightkernels.ops.{op}.cases").CASES if "bench" in c.tags]
            for case in few(cases) if options.shapes == "quick" else cases:
                for layout in LAYOUTS:
                    sample = case.build(dtype=dtype, layout=layout, device=str(device))
                    with Recorder([every[op]]) as recorder, torch.no_grad():
                        operators()[op](*sample.args, **sample.kwargs, backend="torch")
                    yield from (Call.of(one, args) for one, args, _ in recorder.calls)
            if not cases:
                for name in NETWORKS:
                    yield from _of_network(name, device, dtype, options, [every[op]])


def few(cases: Sequence[Case]) -> list[Case]:
    """The first two of each kind."""
    kinds: dict[str, list[Case]] = {}
    for case in cases:
        kinds.setdefault(case.name.rpartition("_")[0], []).append(case)
    return [case for some in kinds.values() for case in some[:2]]


def _of_network(
    name: str, device: torch.device, dtype: torch.dtype, options: Options, wanted: Sequence[Any]
) -> Iterator[Call]:
    """The calls of a training forward and of an evaluation, in both layouts."""
    torch.manual_seed(0)
    model = named.network("tune", name)[0].to(device, dtype)
    images = torch.randn(options.batch, 3, options.size, options.size, device=device, dtype=dtype)
    for memory in (torch.contiguous_format, torch.channels_last):
        x = images.contiguous(memory_format=memory)
        for training in (True, False):
            with Recorder(wanted) as recorder, torch.set_grad_enabled(training):
                model.train(training)(x)
            found = [(op, args) for op, args, _ in recorder.calls]
            del recorder
            yield from (Call.of(op, args) for op, args in found)


def _print(out: Console, title: str, entries: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
    made = table(title, *names, "fastest", "tile", right=tuple(range(1, len(names) + 1)))
    tiles = {e["pass"].partition(" ")[2]: e["config"] for e in entries if not e["pass"].startswith("auto ")}
    for entry in entries:
        backend, _, kind = entry["pass"].partition(" ")
        if backend == "auto":
            times = [milliseconds(1e-6 * entry["others"][n]) if n in entry["others"] else "-" for n in names]
            tile = " ".join(f"{k}={v}" for k, v in tiles.get(kind, {}).items())
            made.add_row(kind, *times, entry["config"]["backend"], tile)
    out.print(made)

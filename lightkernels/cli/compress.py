"""``lightkernels compress``: a network of the zoo or of the user's, on the digits or the user's data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console

from lightkernels import compress as package
from lightkernels._core import measure
from lightkernels.cli import named
from lightkernels.cli.terminal import console, heading
from lightkernels.compress.architecture import WeightsFormat
from lightkernels.compress.pipeline import Result
from lightkernels.compress.plan import Metric, Scope
from lightkernels.compress.report import write_report


@dataclass(frozen=True)
class Options:
    """The command's options, in its order."""

    model: str
    data: str
    operators: str
    preset: str
    lam: Sequence[float]
    target_params: str | None
    target_macs: str | None
    target_latency: str | None
    scope: Scope
    epochs: int | None
    finetune_epochs: int | None
    batch: int
    names: Sequence[str]
    sizes: Sequence[int]
    pools: bool
    baselines: int
    dry_run: bool
    resume: bool
    out: Path
    weights: WeightsFormat
    device: str
    threads: int
    seed: int


def run(options: Options) -> int:
    """Prints the plan, and unless it is a dry run the result; the files are in ``options.out``."""
    out = console()
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        return _run(out, options)
    except (ValueError, TypeError, ImportError) as error:  # ours say which argument is wrong and how to mend it
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"lightkernels: {error}", markup=False)
        return 1


def _run(out: Console, options: Options) -> int:
    torch.manual_seed(options.seed)
    model, network = named.network("compress", options.model)
    model = model.to(options.device)
    loaders = _loaders(options)
    train, test = loaders() if options.data == "digits" else _pair(options.data, loaders())
    changes = {"epochs": options.epochs, "finetune_epochs": options.finetune_epochs}
    settings = package.preset(options.preset, **{k: v for k, v in changes.items() if v is not None})
    listed = [name.strip() for name in options.operators.split(",") if name.strip()]
    names: str | list[str] = listed if len(listed) > 1 else options.operators.strip(" ,")
    where: dict[str, Any] = {"names": options.names or "*", "sizes": tuple(options.sizes), "pools": options.pools}
    where["order"] = "paper" if options.preset == "paper" else "cost"
    images = next(iter(train))[0][:16].to(options.device)
    bounds = {name: getattr(options, f"target_{name}") for name in ("params", "macs", "latency")}
    asked: dict[str, Any] = {name: _number(value) for name, value in bounds.items() if value is not None}
    plan = package.plan(model, images, names, **where)
    if options.dry_run or "latency" in asked:
        plan = package.measure_latencies(plan, model, images)
    out.print(str(plan), markup=False)
    for name, value in asked.items():
        plan.target(cast(Metric, name), value, options.scope)
    if options.dry_run:
        return 0
    measure.steady_memory(huge=True)
    results: list[Result] = []
    rates = list(options.lam) or [settings.lam]
    for lam in rates:
        folder = options.out if len(rates) == 1 else options.out / f"lambda-{lam:g}"
        if len(rates) > 1:
            heading(out, f"lambda {lam:g}")
        train, test = loaders() if options.data == "digits" else _pair(options.data, loaders())
        bound = {f"target_{name}": value for name, value in asked.items()}
        result = package.compress(
            model, train, operators=names, settings=replace(settings, lam=lam),
            **bound, scope=options.scope,
            evaluate=test, out=folder, example_inputs=images, **where, baselines=options.baselines,
            train_original=True, network=network, weights=options.weights, resume=options.resume, seed=options.seed,
        )  # fmt: skip
        results.append(result)
        heading(out, "Result")
        out.print(str(result), markup=False)
        out.print(f"{folder / 'report.html'}\n{folder / 'architecture.json'}", markup=False, soft_wrap=True)
    if len(results) > 1:
        out.print(str(write_report(options.out, results)), markup=False, soft_wrap=True)
    return 0


def _number(value: str) -> float | str:
    try:
        return float(value.replace(",", "").replace("_", ""))
    except ValueError:
        return value


def _loaders(options: Options) -> Callable[[], Any]:
    if options.data == "digits":
        from lightkernels.compress.digits import loaders

        return lambda: loaders(options.batch, options.seed)
    return lambda: named.call("compress", options.data)


def _pair(name: str, found: object) -> tuple[Iterable[Any], Iterable[Any] | None]:
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise TypeError(f"compress: --data must name a function that returns (train loader, test loader or None); "
                        f"got {type(found).__name__} from {name}.")  # fmt: skip
    return found[0], found[1]

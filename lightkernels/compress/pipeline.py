"""One call from a network to a light one: reconstruct, search, derive, fine-tune, compare, report."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightkernels._core import measure
from lightkernels._core.spec import fail_type, require
from lightkernels.compress.architecture import Architecture, WeightsFormat, save
from lightkernels.compress.derive import architecture_of, derive, random_architectures
from lightkernels.compress.extras import need
from lightkernels.compress.loop import Recipe, accuracy, device_of, once, rank
from lightkernels.compress.plan import METRICS, SCOPES, Metric, Plan, Scope, Target
from lightkernels.compress.progress import Progress
from lightkernels.compress.reconstruct import Order, Patterns, measure_latencies, plan, supernet
from lightkernels.compress.search import Evaluate, Record, finetune, search
from lightkernels.compress.settings import Settings, checked
from lightkernels.compress.trace import Inputs, run, tensors
from lightkernels.nn._arguments import one_of
from lightkernels.train.files import atomic_write, finite, writable

_LATENCY_BATCH = 16
_TWICE = "give a DataLoader or a list"


@dataclass
class Baseline:
    """A random architecture of the found one's cost, trained for as many epochs; accuracy None where not trained."""

    operators: dict[str, str]
    params: float
    macs: float
    accuracy: float | None


@dataclass
class Result:
    """What ``compress`` found. ``seconds`` has the whole network's latency before and after, batch and device."""

    model: nn.Module
    architecture: Architecture
    plan: Plan
    found: list[int]
    settings: Settings
    target: Target | None
    history: list[Record]
    tuning: list[Record] = field(default_factory=list)
    accuracy_before: float | None = None
    accuracy: float | None = None
    baselines: list[Baseline] = field(default_factory=list)
    seconds: dict[str, Any] = field(default_factory=dict)

    @property
    def pcr(self) -> float:
        """Of the paper's scope."""
        return self.plan.rates(self.found, "params", "paper").rate

    @property
    def fcr(self) -> float:
        return self.plan.rates(self.found, "macs", "paper").rate

    @property
    def undecided(self) -> int:
        """Gates near zero when the search ended."""
        return int(self.history[-1]["undecided"]) if self.history else 0

    def scopes(self) -> dict[str, dict[str, tuple[float, float, float]]]:
        """By metric and scope: cost before, after, and their ratio."""
        made: dict[str, dict[str, tuple[float, float, float]]] = {}
        for metric in METRICS[:2]:
            rates = {scope: self.plan.rates(self.found, metric, scope) for scope in SCOPES}
            made[metric] = {scope: (r.before, r.cost, r.rate) for scope, r in rates.items()}
        return made

    def as_dict(self) -> dict[str, Any]:
        """All but the network, for JSON."""
        return {
            "accuracy": self.accuracy,
            "accuracy_before": self.accuracy_before,
            "scopes": self.scopes(),
            "undecided": self.undecided,
            "settled": self.history[-1]["settled"] if self.history else 0,
            "target": None if self.target is None else asdict(self.target),
            "settings": self.settings.as_dict(),
            "baselines": [asdict(b) for b in self.baselines],
            "seconds": self.seconds,
            "operators": self.architecture.operators,
        }

    def __str__(self) -> str:
        lines = [f"{len(self.found)} layers replaced: PCR {self.pcr:.2f}, FCR {self.fcr:.2f}"]
        if self.accuracy is not None and self.accuracy_before is not None:
            lines.append(f"accuracy {100 * self.accuracy_before:.2f} % before, {100 * self.accuracy:.2f} % after")
        for baseline in self.baselines:
            got = "not trained" if baseline.accuracy is None else f"{100 * baseline.accuracy:.2f} %"
            lines.append(f"random architecture of {round(baseline.params):,} parameters: {got}")
        if self.seconds:
            lines.append(
                f"latency {1e3 * self.seconds['before']:.3g} ms before, {1e3 * self.seconds['after']:.3g} ms after"
            )
        return "\n".join(lines)


def compress(
    model: nn.Module,
    train_loader: Iterable[Any],
    *,
    operators: Patterns = "SOP8",
    settings: Settings | None = None,
    target_params: float | str | None = None,
    target_macs: float | str | None = None,
    target_latency: float | str | None = None,
    scope: Scope = "whole",
    evaluate: Evaluate | Iterable[Any] | None = None,
    out: str | Path | None = None,
    example_inputs: Inputs | None = None,
    names: Patterns = "*",
    sizes: Sequence[int] = (3,),
    pools: bool = False,
    keep_first: bool = True,
    order: Order = "cost",
    inherit: bool = False,
    recipe: Recipe | None = None,
    baselines: int = 1,
    train_baselines: bool = True,
    train_original: bool = False,
    network: Mapping[str, Any] | None = None,
    weights: WeightsFormat = "safetensors",
    report: bool = True,
    resume: bool = False,
    progress: Progress = True,
    seed: int = 0,
) -> Result:
    """Compresses a copy of ``model``; the model itself is left as it is.

    Args:
        train_loader: batches ``(images, labels)``, read once an epoch; other batches by ``recipe.batch_loss``.
        operators, names, sizes, pools, keep_first, order, inherit: as of :func:`reconstruct`.
        settings: :func:`preset`, "recommended" if left out.
        target_params, target_macs, target_latency: at most one, absolute or as "40%"; refused before anything is
            trained if out of reach. ``scope`` says of what.
        evaluate: a function of a network, higher is better, or a loader whose accuracy is taken.
        out: a folder for checkpoints, log, architecture, weights and report; ``resume=True`` goes on from there.
        example_inputs: arguments of the model; the first images of the loader if left out.
        baselines: random architectures of the found one's cost; trained like it (search and fine-tuning epochs, from
            scratch) unless ``train_baselines`` is False, which costs as much again for each.
        train_original: train a fresh copy of the uncompressed network likewise for ``accuracy_before``; otherwise that
            is the accuracy of ``model`` as it is.
        network: {"name", "num_classes", ...} of a network of the zoo, so that ``load`` needs none.

    Raises:
        ValueError, TypeError: as of the stages; ImportError for a missing extra. All of them before the search begins.
    """
    if not isinstance(model, nn.Module):
        fail_type("compress", "model", "be an nn.Module", model)
    require(out is not None or not resume, "compress", "out", "be a folder to resume from", out)
    settings = checked("compress", settings)
    one_of("compress", "weights", weights, ("safetensors", "torch"))
    if not isinstance(baselines, int) or isinstance(baselines, bool):
        fail_type("compress", "baselines", "be an int", baselines)
    require(baselines >= 0, "compress", "baselines", "be at least 0", baselines)
    folder = None if out is None else Path(out)
    if folder is not None:
        if report:
            need("matplotlib", "train")
        if weights == "safetensors":
            need("safetensors", "export")
    judge = _judge(evaluate)
    require(not once(train_loader), "compress", "train_loader", "be readable more than once", train_loader, _TWICE)
    inputs = _example(train_loader, device_of(model)) if example_inputs is None else example_inputs
    found_plan = plan(
        model, inputs, operators, names=names, sizes=sizes, pools=pools, keep_first=keep_first, order=order
    )
    if target_latency is not None or settings.cost == "latency" or folder is not None:
        found_plan = measure_latencies(found_plan, model, inputs)
    target = _target(found_plan, scope, params=target_params, macs=target_macs, latency=target_latency)
    recipe = recipe or Recipe()
    if folder is not None and rank() == 0:
        writable(folder)
        for old in () if resume else ("fine-tune", "uncompressed", "random-*"):
            for stale in folder.glob(f"{old}.pt"):
                stale.unlink()  # of an earlier run: with resume this one would go on from it
    # First, so that a function that cannot be used says so before the search.
    before = None if judge is None or train_original else judge(model)

    def path(name: str) -> Path | None:
        return None if folder is None else folder / name

    net = supernet(model, found_plan, inherit=inherit, seed=seed)
    history = search(
        net, found_plan, train_loader, settings, target=target, recipe=recipe, checkpoint=path("search.pt"),
        resume=resume, log=path("search.jsonl"), progress=progress, seed=seed,
    )  # fmt: skip
    forward = _forward(recipe)
    small, architecture = derive(net, found_plan, train_loader, forward=forward, network=network)
    found = found_plan.indices(architecture.operators)
    del net
    result = Result(small, architecture, found_plan, found, settings, target, history)

    def train(network: nn.Module, title: str, epochs: int, lr: float) -> list[Record]:
        name = title.replace(" ", "-")
        return finetune(
            network, train_loader, epochs=epochs, lr=lr, momentum=settings.momentum,
            weight_decay=settings.weight_decay, clip_norm=settings.clip_norm, recipe=recipe,
            checkpoint=path(f"{name}.pt"), resume=resume, log=path(f"{name}.jsonl"), progress=progress, title=title,
        )  # fmt: skip

    if settings.finetune_epochs:
        result.tuning = train(small, "fine-tune", settings.finetune_epochs, settings.finetune_lr)
    whole = settings.epochs + settings.finetune_epochs
    if judge is not None:
        result.accuracy, result.accuracy_before = judge(small), before
        if train_original:
            fresh = _fresh(model, seed)
            train(fresh, "uncompressed", whole, settings.lr)
            result.accuracy_before = judge(fresh)
    metric: Metric = "params" if target is None or target.metric == "latency" else target.metric
    cost = found_plan.cost(found, metric)
    for i, drawn in enumerate(_drawn(found_plan, baselines, metric, cost, seed)):
        reached = None
        if train_baselines and judge is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed + 1 + i)
                other = architecture_of(found_plan, drawn).apply(model)
            train(other, f"random {i}", whole, settings.lr)
            reached = judge(other)
        params, macs = found_plan.cost(drawn, "params"), found_plan.cost(drawn, "macs")
        result.baselines.append(Baseline(found_plan.names(drawn), params, macs, reached))
    result.seconds = whole_latency(model, small, inputs)
    result.architecture = replace(
        architecture, notes=finite({"pcr": result.pcr, "fcr": result.fcr, "accuracy": result.accuracy})
    )
    if folder is not None and rank() == 0:
        save(folder, small, result.architecture, weights)
        with atomic_write(folder / "result.json") as temporary:
            temporary.write_text(json.dumps(finite(result.as_dict()), indent=2) + "\n", encoding="utf-8")
        if report:
            from lightkernels.compress.report import write_report

            write_report(folder, [result])
    return result


def _drawn(plan: Plan, number: int, metric: Metric, cost: float, seed: int) -> list[list[int]]:
    """Random architectures of a cost, within 5 % where there are such, or else the nearest tolerance that has some."""
    for tolerance in (0.05, 0.1, 0.2, 0.5):
        try:
            return random_architectures(plan, number, metric=metric, cost=cost, tolerance=tolerance, seed=seed + 1)
        except ValueError:
            continue
    return random_architectures(plan, number, seed=seed + 1)


def whole_latency(before: nn.Module, after: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """Seconds of both networks in evaluation mode, measured in turn."""
    first = next(tensors(inputs))
    calls: dict[str, Callable[[], object]] = {}
    for name, network in (("before", before), ("after", after)):
        calls[name] = _timed(copy.deepcopy(network).eval(), inputs, first.device)
    timings = measure.interleaved(calls, rounds=5, min_time=0.1)
    made: dict[str, Any] = {name: timing.min for name, timing in timings.items()}
    return made | {"batch_size": first.shape[0], "device": str(first.device)}


def _timed(network: nn.Module, inputs: Inputs, device: torch.device) -> Callable[[], object]:
    def call() -> None:
        with torch.no_grad():
            run(network, inputs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return call


def _fresh(model: nn.Module, seed: int) -> nn.Module:
    """A copy with new weights, where the layers can draw them."""
    model = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
    return model


def _judge(evaluate: Evaluate | Iterable[Any] | None) -> Evaluate | None:
    if evaluate is None:
        return None
    if not callable(evaluate) and not isinstance(evaluate, Iterable):
        fail_type("compress", "evaluate", "be a function of a network or a loader", evaluate)
    require(not once(evaluate), "compress", "evaluate", "be readable more than once", evaluate, _TWICE)

    def judge(network: nn.Module) -> float:
        found: Any = evaluate(network) if callable(evaluate) else accuracy(network, evaluate)
        try:
            return float(found)
        except (TypeError, ValueError):
            fail_type("compress", "evaluate", "return a number", found)

    return judge


def _example(loader: Iterable[Any], device: torch.device) -> torch.Tensor:
    images = next((t for t in tensors(next(iter(loader), ())) if t.dim() == 4), None)
    hint = "example_inputs= gives the model's arguments"
    require(images is not None, "compress", "train_loader", "give batches with images [N, C, H, W]", "none", hint)
    assert images is not None
    return images[:_LATENCY_BATCH].to(device)


def _forward(recipe: Recipe) -> Callable[[nn.Module, Any], object]:
    def forward(model: nn.Module, batch: Any) -> object:
        return recipe.loss(model, batch, device_of(model))

    return forward


def _target(plan: Plan, scope: Scope, **bounds: float | str | None) -> Target | None:
    asked = [(name, value) for name, value in bounds.items() if value is not None]
    require(len(asked) <= 1, "compress", "the target", "be one", " and ".join(f"target_{name}" for name, _ in asked))
    return plan.target(asked[0][0], asked[0][1], scope) if asked else None  # type: ignore[arg-type]

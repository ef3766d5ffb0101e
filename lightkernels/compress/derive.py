"""From a searched supernet to a plain network; BatchNorm statistics measured again; architectures drawn at random."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from lightkernels._core.spec import require
from lightkernels.compress.architecture import Architecture, Layer
from lightkernels.compress.plan import Codes, Metric, Plan, Scope
from lightkernels.compress.selection import Selection, selections
from lightkernels.compress.trace import tensors
from lightkernels.nn.convert import convert

Forward = Callable[[nn.Module, Any], object]


def forward_first(model: nn.Module, batch: Any) -> object:
    """Calls the model with the first tensor of a batch, as in ``(images, labels)``."""
    return model(next(tensors(batch)).to(_device(model)))


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def architecture_of(plan: Plan, found: Codes, network: Mapping[str, Any] | None = None, **notes: Any) -> Architecture:
    """An architecture, given by an index for each site of ``plan``, as data."""
    layers = tuple(
        Layer(site.name, site.options[i].name, site.in_channels, site.out_channels, site.stride, site.norm)
        for site, i in zip(plan.sites, found, strict=True)
    )
    return Architecture(layers, network, notes)


def chosen(model: nn.Module, plan: Plan) -> list[int]:
    """The active operator of every site of a supernet."""
    found, expected = selections(model), [site.name for site in plan.sites]
    hint = "reconstruct returns both; without a wrapper around the model"
    require(
        set(expected) <= set(found), "derive", "model", f"have selection operators at {expected}", sorted(found), hint
    )
    return [found[name].index() for name in expected]


def derive(
    model: nn.Module,
    plan: Plan,
    loader: Iterable[Any] | None = None,
    *,
    batches: int = 100,
    forward: Forward = forward_first,
    network: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, Architecture]:
    """The network of a supernet's active operators, without selection operators, and its architecture.

    In evaluation mode its results equal the supernet's, until ``loader`` has its BatchNorm statistics measured again
    with up to ``batches`` batches: those of a path that was active in part of the search only are not its own.

    Args:
        forward: called with the network and a batch of the loader; the default passes the batch's first tensor.
        network: {"name", "num_classes", ...} if the uncompressed network is of the zoo, so that ``load`` can make it.
    """
    require(len(selections(model)) > 0, "derive", "model", "have selection operators", model)
    architecture = architecture_of(plan, chosen(model, plan), network)

    def rule(name: str, layer: nn.Module) -> nn.Module | str | None:
        return layer.derive().train(layer.training) if isinstance(layer, Selection) else None

    made, _ = convert(model, rule)
    if loader is not None:
        recalibrate(made, loader, batches=batches, forward=forward)
    return made, architecture


def recalibrate(
    model: nn.Module, loader: Iterable[Any], *, batches: int = 100, forward: Forward = forward_first
) -> None:
    """Measures the running statistics of every BatchNorm again: the mean over the batches, dropout and the like off."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    modes = [(m, m.training) for m in model.modules()]
    momenta = [norm.momentum for norm in norms]
    if not norms:
        return
    model.eval()
    before = [copy.deepcopy(norm.state_dict()) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
        norm.train()
    seen = 0
    try:
        with torch.no_grad():
            for batch in loader:
                if seen >= batches:
                    break
                forward(model, batch)
                seen += 1
    finally:
        for norm, momentum, state in zip(norms, momenta, before, strict=True):
            norm.momentum = momentum
            if not seen:
                norm.load_state_dict(state)
        for module, mode in modes:
            module.training = mode
    require(seen > 0, "derive", "loader", "give a batch", "none")


def random_architectures(
    plan: Plan,
    number: int,
    *,
    metric: Metric = "params",
    cost: float | None = None,
    scope: Scope = "whole",
    tolerance: float = 0.05,
    seed: int = 0,
) -> list[list[int]]:
    """Architectures drawn at random: every operator alike, or, if ``cost`` is given, of that cost within ``tolerance``.

    For a given cost the operators of a layer are drawn with probabilities proportional to exp(-b cost), b such that
    the expected cost is the one asked for, and draws outside the tolerance are thrown away.

    Raises:
        ValueError: for a cost that no architecture has.
    """
    table = plan.table(metric, scope)
    generator = torch.Generator().manual_seed(seed)
    kept = plan.before(metric, scope) - sum(plan.replaced_before(metric, scope))
    most = max((max(row) for row in table), default=0.0) or 1.0

    def chances(b: float) -> list[list[float]]:
        raw = [[math.exp(-b * (value - (min(row) if b > 0 else max(row))) / most) for value in row] for row in table]
        return [[value / sum(row) for value in row] for row in raw]

    def expected(b: float) -> float:
        return kept + sum(
            p * value for row, ps in zip(table, chances(b), strict=True) for value, p in zip(row, ps, strict=True)
        )

    b = 0.0
    if cost is not None:
        reach = plan.range(metric, scope)
        possible = reach.least * (1 - tolerance) <= cost <= reach.most * (1 + tolerance)
        require(possible, "random_architectures", "cost", f"lie in [{reach.least}, {reach.most}]", cost)
        low, high = -700.0, 700.0
        for _ in range(60):
            b = (low + high) / 2
            low, high = (b, high) if expected(b) > cost else (low, b)
    weights = [torch.tensor(row, dtype=torch.float64) for row in chances(b)]
    found: list[list[int]] = []
    drawn = 0
    while len(found) < number:
        draw = [int(torch.multinomial(row, 1, generator=generator)) for row in weights]
        drawn += 1
        if cost is None or abs(plan.cost(draw, metric, scope) / cost - 1) <= tolerance:
            found.append(draw)
        elif drawn >= 1000 * number:
            # Few layers of very different cost may have no other architecture near it.
            require(False, "random_architectures", "tolerance", f"leave an architecture of cost {cost}", tolerance)
    return found

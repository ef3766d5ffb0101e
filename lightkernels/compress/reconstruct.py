"""From a network to its supernet: convolutions give way to selection operators, and every layer is accounted for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import nn

from lightkernels._core import measure
from lightkernels._core.spec import fail_type, require
from lightkernels.compress.cost import cost
from lightkernels.compress.loop import first_says
from lightkernels.compress.operators import operator_set
from lightkernels.compress.plan import Latencies, Plan, Row
from lightkernels.compress.selection import Selection, selections
from lightkernels.compress.sites import Choice, Finder, Site
from lightkernels.compress.trace import CONVOLUTIONS, Inputs, evaluating, run, tensors, trace
from lightkernels.nn import MultiDepthwiseConv2d
from lightkernels.nn._arguments import int_tuple, one_of
from lightkernels.nn.convert import convert

Patterns = str | Sequence[str]
Order = Literal["cost", "paper"]


_WRAPPERS = ("DistributedDataParallel", "DataParallel", "FullyShardedDataParallel", "OptimizedModule")


def plan(
    model: nn.Module,
    example_inputs: Inputs,
    operators: Patterns = "SOP8",
    *,
    names: Patterns = "*",
    sizes: Sequence[int] = (3,),
    pools: bool = False,
    keep_first: bool = True,
    order: Order = "cost",
) -> Plan:
    """The dry run of :func:`reconstruct`, with the same arguments: what would be replaced, and what is reachable.

    Args:
        model: any module. It is run once, on a copy in evaluation mode, and is left as it is.
        example_inputs: a tensor ``[N, C, H, W]``, or a sequence or mapping of the model's arguments.
        operators: a set's name ("SOP1" to "SOP10") or names of operators.
        names: a pattern of layers' names, such as ``"backbone.*"``, or several; other layers are kept.
        sizes: the kernel sizes that are replaced: ``(3,)``, or ``(1,)`` for the 1x1 layers of a MobileNet.
        pools: replace max-pools with a stride too, as the paper does in VGG16.
        keep_first: keep the convolution that runs first.
        order: of a layer's operators, by ``"cost"`` (one-bit steps then always lead to a lighter one) or as in the
            ``"paper"``.

    Raises:
        TypeError: for arguments of the wrong type.
        ValueError: for an unknown set or operator, a layer that no operator fits, or a model without any such layer.
    """
    if not isinstance(model, nn.Module):
        fail_type("reconstruct", "model", "be an nn.Module", model)
    one_of("reconstruct", "order", order, ("cost", "paper"))
    wrapper = type(model).__name__
    hint = "give the module inside; wrap or compile the result"
    require(wrapper not in _WRAPPERS, "reconstruct", "model", "be a network without a wrapper", wrapper, hint)
    inside = next((name for name, m in model.named_modules() if isinstance(m, Selection)), None)
    require(inside is None, "reconstruct", "model", "have no selection operators yet", inside)
    patterns = (names,) if isinstance(names, str) else names
    if not isinstance(patterns, Sequence) or not all(isinstance(pattern, str) for pattern in patterns):
        fail_type("reconstruct", "names", "be a pattern of layers' names or several", names)
    kernels = int_tuple("reconstruct", "sizes", sizes, "an int or a sequence of ints")
    choice = Choice(tuple(patterns), kernels, pools, keep_first, order)
    traced = trace(model, example_inputs)
    finder = Finder(model, traced, operator_set(operators), choice)
    answers = {name: finder.look(name) for name, _ in model.named_modules()}
    order_run = {call.name: i for i, call in enumerate(traced.calls)}
    sites = sorted((a for a in answers.values() if isinstance(a, Site)), key=lambda site: order_run[site.name])
    reasons = "; ".join(f"{name}: {said}" for name, said in answers.items() if isinstance(said, str))
    hint = "names=, sizes= and pools= say which layers are looked at"
    expected = "have a layer that the operators can replace"
    require(len(sites) > 0, "reconstruct", "model", expected, reasons or "no convolution", hint)
    by_name, norms = {site.name: site for site in sites}, {site.norm: site.name for site in sites if site.norm}
    rows = []
    for name, layer in _layers(model):
        said = answers.get(name, "it stands in another place too, and goes the way of that one")
        if name in by_name:
            rows.append(Row(name, type(layer).__name__, True, _chosen(by_name[name])))
        elif name in norms:
            rows.append(Row(name, type(layer).__name__, True, f"every operator of {norms[name]} has its own"))
        elif isinstance(said, str) or not list(layer.children()):
            why = said if isinstance(said, str) else "no operator replaces its kind"
            rows.append(Row(name, type(layer).__name__, False, why))
    return Plan(tuple(rows), tuple(sites), _paper_kept(model, finder, by_name), _totals(model, traced.macs))


def reconstruct(
    model: nn.Module,
    example_inputs: Inputs,
    operators: Patterns = "SOP8",
    *,
    names: Patterns = "*",
    sizes: Sequence[int] = (3,),
    pools: bool = False,
    keep_first: bool = True,
    order: Order = "cost",
    inherit: bool = False,
    seed: int = 0,
) -> tuple[nn.Module, Plan]:
    """A copy of ``model`` whose convolutions are selection operators, and the :class:`Plan` that says so, printable.

    A convolution is replaced together with the BatchNorm that alone reads its result, as every operator ends in its
    own; the activation after it stays where it is. Replaced are plain ``nn.Conv2d`` of the kernel sizes asked for, with
    equal strides, without groups or dilation, that run once in a pass. Everything else is kept, and the plan says why.

    Args:
        inherit: an operator with a weight of the replaced convolution's shape starts from the replaced layers' values.
        seed: of the operators' weights and the gates.

    The other arguments and the errors are those of :func:`plan`.

    Source: Diao et al., "Implementation of Lightweight CNNs via Layer-Wise Differentiable Compression", section 3.
    """
    found = plan(
        model, example_inputs, operators, names=names, sizes=sizes, pools=pools, keep_first=keep_first, order=order
    )
    return supernet(model, found, inherit=inherit, seed=seed), found


def supernet(model: nn.Module, plan: Plan, *, inherit: bool = False, seed: int = 0) -> nn.Module:
    """The copy of ``model`` that a plan made for it describes."""
    sites = {site.name: site for site in plan.sites}
    norms = {site.norm for site in plan.sites if site.norm}
    generator = torch.Generator().manual_seed(seed)
    modules = dict(model.named_modules())

    def rule(name: str, layer: nn.Module) -> nn.Module | str | None:
        if name in norms:
            return nn.Identity()
        return _selection(sites[name], layer, modules, generator, inherit) if name in sites else None

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made, report = convert(model, rule)
    missed = [row.name for row in report.kept if row.name in sites or row.name in norms]
    if missed or len(selections(made)) != len(sites):
        raise ValueError(f"reconstruct: plan must be of this model; got one whose layers {missed} cannot be replaced.")
    return made


def _selection(
    site: Site, layer: nn.Module, modules: dict[str, nn.Module], generator: torch.Generator, inherit: bool
) -> Selection:
    like = next(modules[site.name].parameters(), next((p for m in modules.values() for p in m.parameters()), None))
    made = Selection(
        site.names,
        site.in_channels,
        site.out_channels,
        site.stride,
        generator=generator,
    )
    if like is not None:
        made = made.to(device=like.device, dtype=like.dtype)
    if inherit and isinstance(layer, nn.Conv2d):
        norm = modules[site.norm] if site.norm is not None else None
        for branch in made.branches:
            _inherit(branch, layer, norm)
    return made.train(layer.training)


def _inherit(branch: nn.Module, conv: nn.Conv2d, norm: nn.Module | None) -> None:
    """Copies weight and BatchNorm into a branch that is one convolution of the same shape and a BatchNorm."""
    inner, after = getattr(branch, "conv", None), getattr(branch, "norm", None)
    if not isinstance(inner, nn.Conv2d) or inner.weight.shape != conv.weight.shape or inner.groups != conv.groups:
        return
    with torch.no_grad():
        inner.weight.copy_(conv.weight)
        if isinstance(norm, nn.BatchNorm2d) and isinstance(after, nn.BatchNorm2d):
            state = {key: value.clone() for key, value in norm.state_dict().items()}
            if conv.bias is not None and "running_mean" in state:
                state["running_mean"] -= conv.bias
            after.load_state_dict(state, strict=False)
            after.eps = norm.eps


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules by every name; what is inside a layer of ours is no layer of its own."""
    inside: tuple[str, ...] = ()
    for name, layer in model.named_modules(remove_duplicate=False):
        if not name.startswith(inside):
            yield name, layer
            if isinstance(layer, MultiDepthwiseConv2d):
                inside = (*inside, f"{name}.")


def _chosen(site: Site) -> str:
    text = f"{site.in_channels} to {site.out_channels} channels"
    text += f", stride {site.stride}" if site.stride > 1 else ""
    text += f", {site.size[0]}x{site.size[1]}: {', '.join(site.names)}"
    return text + "".join(f"; without {name}: {why}" for name, why in site.left_out)


def _paper_kept(model: nn.Module, finder: Finder, sites: dict[str, Site]) -> tuple[int, int]:
    """Weights and multiply-adds of the convolutions that stay, but for the first."""
    weights = macs = 0
    seen: set[int] = set()
    for call in finder.trace.calls:
        layer = finder.modules[call.name]
        if isinstance(layer, CONVOLUTIONS) and call.name not in sites and call.name != finder.first:
            kernels = [p for p in layer.parameters() if p.dim() > 1]
            weights += sum(p.numel() for p in kernels if id(p) not in seen)
            seen.update(map(id, kernels))
            macs += sum(p.numel() for p in kernels) * call.out[0] * call.out[1]
    return weights, macs


def _totals(model: nn.Module, macs: int) -> tuple[int, int]:
    return sum(p.numel() for p in model.parameters()), macs


def measure_latencies(plan: Plan, model: nn.Module, example_inputs: Inputs, *, min_time: float = 0.05) -> Plan:
    """A copy of ``plan`` with seconds measured on this machine, for the batch and the device of ``example_inputs``.

    ``model`` is the uncompressed network. Layers and operators of the same shape are measured once.
    """
    first = next(tensors(example_inputs))
    device, batch = first.device, first.shape[0]
    # Of the layers, not of the images, which may be integers.
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    copied = copy.deepcopy(model).eval()
    modules = dict(copied.named_modules())
    memo: dict[tuple[object, ...], float] = {}

    def seconds(call: Callable[[], None]) -> float:
        return measure.interleaved({"": call}, rounds=3, min_time=min_time)[""].min

    def synced(module: nn.Module, inputs: Inputs) -> Callable[[], None]:
        def call() -> None:
            with torch.no_grad():
                run(module, inputs)
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return call

    def before(site: Site) -> float:
        key = (site.kind, site.in_channels, site.out_channels, site.stride, site.size)
        if key not in memo:
            parts = [modules[site.name], *([modules[site.norm]] if site.norm else [])]
            x = torch.randn(batch, site.in_channels, *site.size, device=device, dtype=dtype)
            memo[key] = seconds(synced(nn.Sequential(*parts), x))
        return memo[key]

    def option(site: Site, name: str) -> float:
        counted = cost(name, site.in_channels, site.out_channels, site.stride, size=site.size)
        return counted.latency(batch=batch, device=str(device), dtype=dtype)

    with evaluating(copied):
        found = Latencies(
            batch,
            str(device),
            seconds(synced(copied, example_inputs)),
            tuple(before(site) for site in plan.sites),
            tuple(tuple(option(site, name) for name in site.names) for site in plan.sites),
        )
    # Gates that weigh other times in other processes would part.
    return replace(plan, latencies=first_says(found))

"""The report's pictures; needs matplotlib (the ``train`` extra)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lightkernels.compress.pipeline import Result
from lightkernels.compress.plan import quantity
from lightkernels.train.files import atomic_write

_OURS, _THEIRS, _WRONG, _QUIET = "#2a6fb0", "#b8bec6", "#c8452f", "#5c6670"


def _figure(wide: float, high: float) -> Figure:
    figure = Figure(figsize=(wide, high), dpi=110, facecolor="white")
    figure.set_layout_engine("constrained")
    return figure


def _tidy(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def operators_by_layer(results: Sequence[Result]) -> Figure:
    """Figs. 5 to 7 of the paper: the operator of each layer, the lightest ones at the bottom."""
    plan = results[0].plan
    weight: Counter[str] = Counter()
    for site in plan.sites:
        for option in site.options:
            weight[option.name] += (
                option.weights * site.options[-1].weights // max(1, site.in_channels * site.out_channels)
            )
    names = sorted(weight, key=lambda name: (weight[name], name))
    figure = _figure(max(7.0, 0.24 * len(plan.sites) + 2.5), 0.28 * len(names) + 1.8)
    axes = figure.subplots()
    _tidy(axes, "Operator by layer, in the order they run")
    for result, colour in zip(results, _colours(len(results)), strict=True):
        chosen = [names.index(name) for name in result.architecture.operators.values()]
        label = _label(result)
        axes.plot(range(1, len(chosen) + 1), chosen, "o-", color=colour, linewidth=0.8, markersize=5, label=label)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("replaced layer")
    axes.grid(axis="y", linewidth=0.4, color=_THEIRS)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(results) > 1:
        axes.legend(fontsize=8)
    return figure


def histogram(results: Sequence[Result]) -> Figure:
    """Fig. 8: how often each operator was chosen."""
    counts = [Counter(result.architecture.operators.values()) for result in results]
    names = sorted({name for site in results[0].plan.sites for name in site.names})
    figure = _figure(max(6.0, 0.55 * len(names) + 1.5), 3.2)
    axes = figure.subplots()
    _tidy(axes, "How often each operator was chosen")
    wide = 0.8 / len(results)
    for i, (result, count, colour) in enumerate(zip(results, counts, _colours(len(results)), strict=True)):
        places = [j + (i - (len(results) - 1) / 2) * wide for j in range(len(names))]
        axes.bar(places, [count[name] for name in names], wide, color=colour, label=_label(result))
    axes.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=8)
    axes.set_ylabel("layers")
    if len(results) > 1:
        axes.legend(fontsize=8)
    return figure


def pareto(results: Sequence[Result]) -> Figure:
    """Fig. 10: accuracy over parameters for every lambda, beside random architectures and the uncompressed network."""
    figure = _figure(6.4, 4.0)
    axes = figure.subplots()
    _tidy(axes, "Accuracy and size (whole model)")
    for result, colour in zip(results, _colours(len(results)), strict=True):
        params = result.plan.cost(result.found, "params")
        if result.accuracy is not None:
            axes.plot(params, 100 * result.accuracy, "o", color=colour, markersize=8, label=_label(result))
        for i, baseline in enumerate(b for b in result.baselines if b.accuracy is not None):
            label = "random, equal cost" if i == 0 and result is results[0] else None
            axes.plot(baseline.params, 100 * (baseline.accuracy or 0), "x", color=_WRONG, markersize=7, label=label)
    before = next((r.accuracy_before for r in results if r.accuracy_before is not None), None)
    if before is not None:
        axes.plot(results[0].plan.before("params"), 100 * before, "s", color=_QUIET, label="uncompressed")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1000:,.0f}"))
    axes.margins(0.1, 0.15)
    axes.set_xlabel("parameters in thousands")
    axes.set_ylabel("accuracy in %")
    if axes.has_data():
        axes.legend(fontsize=8)
    else:
        axes.text(0.5, 0.5, "no accuracies: evaluate= was not given", ha="center", transform=axes.transAxes)
    return figure


def course(results: Sequence[Result]) -> Figure:
    """By epoch: gates that flipped, gates near zero, PCR and loss; warm-up and freeze are shaded."""
    figure = _figure(10, 5.2)
    panels = figure.subplots(2, 2)
    shown = (
        ("flips", "Flips"),
        ("undecided", "Undecided gates"),
        ("pcr", "PCR, paper's scope"),
        ("loss", "Training loss"),
    )
    for axes, (key, title) in zip(panels.flat, shown, strict=True):
        _tidy(axes, title)
        for result, colour in zip(results, _colours(len(results)), strict=True):
            epochs = [record["epoch"] + 1 for record in result.history]
            axes.plot(epochs, [record[key] for record in result.history], color=colour, label=_label(result))
        for record in results[0].history:
            if record["phase"] != "search":
                axes.axvspan(record["epoch"] + 0.5, record["epoch"] + 1.5, color=_THEIRS, alpha=0.3, linewidth=0)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if key != "loss":
            axes.set_ylim(bottom=0)
    if len(results) > 1:
        panels.flat[0].legend(fontsize=8)
    return figure


def latency(results: Sequence[Result]) -> Figure | None:
    """Each replaced layer's time before and after, of the first result; None where nothing was measured."""
    result = results[0]
    if result.plan.latencies is None:
        return None
    before = [1e3 * value for value in result.plan.latencies.before]
    after = [1e3 * row[i] for row, i in zip(result.plan.latencies.options, result.found, strict=True)]
    figure = _figure(max(7.0, 0.3 * len(before) + 2), 3.2)
    axes = figure.subplots()
    where = f"{result.plan.latencies.device}, batch of {result.plan.latencies.batch_size}"
    _tidy(axes, f"Time of each layer alone ({where}); slower ones in red")
    places = range(1, len(before) + 1)
    axes.bar([p - 0.2 for p in places], before, 0.4, color=_THEIRS, label="before")
    colours = [_WRONG if a > b else _OURS for a, b in zip(after, before, strict=True)]
    axes.bar([p + 0.2 for p in places], after, 0.4, color=colours, label="after")
    axes.set_xlabel("replaced layer")
    axes.set_ylabel("ms")
    axes.legend(fontsize=8)
    return figure


def _colours(number: int) -> list[str]:
    wheel = [_OURS, "#e0902f", "#3f9b5a", "#8a5bb0", "#946b3d", "#d4679b"]
    return [wheel[i % len(wheel)] for i in range(number)]


def _label(result: Result) -> str:
    if result.target is not None:
        return f"{result.target.metric}, {result.target.scope}: {quantity(result.target.metric, result.target.value)}"
    return f"lambda {result.settings.lam:g}"


FIGURES: dict[str, Callable[[Sequence[Result]], Figure | None]] = {
    "operators": operators_by_layer,
    "histogram": histogram,
    "pareto": pareto,
    "course": course,
    "latency": latency,
}


def draw_all(folder: Path, results: Sequence[Result]) -> list[Path]:
    """Writes a PNG for every figure that has something to show."""
    made = []
    for name, draw in FIGURES.items():
        figure = draw(results)
        if figure is not None:
            path = folder / f"{name}.png"
            with atomic_write(path) as temporary:
                figure.savefig(temporary, format="png")
            made.append(path)
    return made

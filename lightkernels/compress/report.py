"""The report of one or several runs: one HTML file with its pictures inside, and the pictures as PNG beside it."""

from __future__ import annotations

import base64
import statistics
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from lightkernels.compress.derive import random_architectures
from lightkernels.compress.extras import need
from lightkernels.compress.pipeline import Result
from lightkernels.compress.plan import METRICS, SCOPES, Metric, quantity
from lightkernels.train.files import atomic_write

_DRAWS = 400
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .9em .2em 0;text-align:left;vertical-align:top}
th{border-bottom:1px solid #888;font-weight:600}td.n{text-align:right}img{max-width:100%}
.warn{color:#a3341f}h2{margin-top:2em}"""


def write_report(folder: str | Path, results: Sequence[Result]) -> Path:
    """Writes ``report.html`` and its PNG files, each whole or not at all; returns the page's path.

    Args:
        results: of one network; several, at different lambda, make the Pareto figure.

    Raises:
        ImportError: without matplotlib; the message has the pip command.
    """
    need("matplotlib", "train")
    from lightkernels.compress.figures import draw_all

    folder = Path(folder)
    pictures = draw_all(folder, results)
    page = folder / "report.html"
    with atomic_write(page) as temporary:
        temporary.write_text(html(results, pictures), encoding="utf-8")
    return page


def html(results: Sequence[Result], pictures: Iterable[Path] = ()) -> str:
    """The page as text."""
    parts = ["<!doctype html><meta charset=utf-8><title>Compression</title>", f"<style>{_STYLE}</style>"]
    parts.append("<h1>Layer-wise differentiable compression</h1>")
    for result in results:
        parts += _summary(result)
    for path in pictures:
        data = base64.b64encode(path.read_bytes()).decode("ascii")
        parts.append(f'<p><img alt="{escape(path.stem)}" src="data:image/png;base64,{data}"></p>')
    parts += _layers(results[0])
    return "\n".join(parts) + "\n"


def warnings(result: Result) -> list[str]:
    """What a reader should know before using the result."""
    found = []
    if result.undecided:
        found.append(f"{result.undecided} gates were undecided at the end (|alpha| < {result.settings.undecided})")
    settled = result.history[-1]["settled"] if result.history else 0
    if settled:
        found.append(f"{settled} times a layer was moved to a lighter operator to meet the target")
    if result.seconds and result.seconds["after"] > result.seconds["before"]:
        found.append("on this device the compressed network is slower than the uncompressed one")
    found += [f"{name}: {operator} is lighter but slower here" for name, operator in slower(result)]
    trained = [b.accuracy for b in result.baselines if b.accuracy is not None]
    if trained and result.accuracy is not None and result.accuracy < statistics.fmean(trained):
        found.append("random architectures of equal cost are more accurate: this search found nothing")
    if not trained:
        found.append("no random architecture was trained, so that nothing shows what the search itself is worth")
    return found


def slower(result: Result) -> list[tuple[str, str]]:
    """Layers whose operator has fewer multiply-adds than the layer had, and takes longer."""
    latencies = result.plan.latencies
    if latencies is None:
        return []
    found = []
    for site, i, before, options in zip(
        result.plan.sites, result.found, latencies.before, latencies.options, strict=True
    ):
        if site.options[i].macs < site.before.macs and options[i] > before:
            found.append((site.name, site.options[i].name))
    return found


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 99) -> str:
    """Columns from the second to ``numbers`` hold numbers."""
    lines = ["<table><tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"]
    for row in rows:
        cells = (f"<td{' class=n' if 0 < i < numbers else ''}>{escape(cell)}</td>" for i, cell in enumerate(row))
        lines.append("<tr>" + "".join(cells) + "</tr>")
    return "\n".join([*lines, "</table>"])


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{100 * value:.2f} %"


def _summary(result: Result) -> list[str]:
    target = result.target
    asked = f"lambda {result.settings.lam:g}"
    if target is not None:
        asked = f"{target.metric} of the {target.scope} scope at most {quantity(target.metric, target.value)}"
    parts = [f"<h2>{escape(asked)}</h2>", "<ul>"]
    parts += [f'<li class="warn">{escape(text)}</li>' for text in warnings(result)]
    parts += [f"<li>undecided gates: {result.undecided}</li>", "</ul>"]
    rows: list[tuple[str, ...]] = []
    for metric, name in (("params", "parameters (PCR)"), ("macs", "multiply-adds (FCR)")):
        for scope in SCOPES:
            before, after, rate = result.scopes()[metric][scope]
            rows.append((f"{name}, {scope}", f"{before:,.0f}", f"{after:,.0f}", f"{rate:.2f}"))
    parts.append(_table(("scope", "before", "after", "times less"), rows))
    rows = [("uncompressed", "", "", _percent(result.accuracy_before))]
    cost = [f"{result.plan.cost(result.found, metric):,.0f}" for metric in METRICS[:2]]
    rows.append(("found", *cost, _percent(result.accuracy)))
    for baseline in result.baselines:
        got = "not trained" if baseline.accuracy is None else _percent(baseline.accuracy)
        rows.append(("random, equal cost", f"{baseline.params:,.0f}", f"{baseline.macs:,.0f}", got))
    trained = [b.accuracy for b in result.baselines if b.accuracy is not None]
    if len(trained) > 1:
        rows.append(
            ("random, mean", "", "", f"{_percent(statistics.fmean(trained))} ± {100 * statistics.stdev(trained):.2f}")
        )
    parts.append(_table(("network", "parameters", "multiply-adds", "accuracy"), rows))
    parts.append("<p>What no search at all gives: rates of uniformly random operators (median, 5 % and 95 %).</p>")
    parts.append(_table(("rate", "5 %", "median", "95 %", "found"), _random_rates(result)))
    if result.seconds:
        s = result.seconds
        text = f"Whole network, batch of {s['batch_size']} on {s['device']}: {1e3 * s['before']:.3g} ms before, "
        text += f"{1e3 * s['after']:.3g} ms after ({s['before'] / s['after']:.2f} times as fast)."
        parts.append(f"<p>{escape(text)}</p>")
    return parts


def _random_rates(result: Result) -> list[tuple[str, ...]]:
    draws = random_architectures(result.plan, _DRAWS)
    rows: list[tuple[str, ...]] = []
    metrics: tuple[tuple[Metric, str], ...] = (("params", "PCR"), ("macs", "FCR"))
    for metric, name in metrics:
        rates = sorted(result.plan.rates(draw, metric, "paper").rate for draw in draws)
        low, median, high = (rates[round(q * (_DRAWS - 1))] for q in (0.05, 0.5, 0.95))
        found = result.plan.rates(result.found, metric, "paper").rate
        rows.append((f"{name}, paper", f"{low:.2f}", f"{median:.2f}", f"{high:.2f}", f"{found:.2f}"))
    return rows


def _layers(result: Result) -> list[str]:
    operators = result.architecture.operators
    latencies = result.plan.latencies
    times = {}
    if latencies is not None:
        for site, i, before, row in zip(
            result.plan.sites, result.found, latencies.before, latencies.options, strict=True
        ):
            times[site.name] = (f"{1e3 * before:.3g}", f"{1e3 * row[i]:.3g}")
    rows = [
        (row.name, row.kind, operators.get(row.name, "with its layer" if row.replaced else "kept"),
         *times.get(row.name, ("", "")), row.why)
        for row in result.plan.rows
    ]  # fmt: skip
    head = ("layer", "was", "became", "ms before", "ms after", "why")
    return ["<h2>Every layer</h2>", _table(head, rows, numbers=0)]

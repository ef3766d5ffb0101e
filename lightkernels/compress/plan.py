"""What a reconstruction would do and could reach, before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Literal

from lightkernels._core.spec import fail_type, require
from lightkernels.compress.sites import Option, Site
from lightkernels.nn._arguments import one_of

Metric = Literal["params", "macs", "latency"]
Scope = Literal["replaced", "paper", "whole"]
METRICS: tuple[Metric, ...] = ("params", "macs", "latency")
SCOPES: tuple[Scope, ...] = ("replaced", "paper", "whole")
Codes = Sequence[int]


@dataclass(frozen=True)
class Row:
    """What becomes of one layer."""

    name: str
    kind: str
    replaced: bool
    why: str


@dataclass(frozen=True)
class Range:
    """Least, expected for operators drawn uniformly, and most; and the uncompressed network's."""

    least: float
    expected: float
    most: float
    before: float


@dataclass(frozen=True)
class Rates:
    """One architecture in one scope: its cost, and how many times less that is than the uncompressed network's."""

    cost: float
    before: float

    @property
    def rate(self) -> float:
        return self.before / self.cost if self.cost else float("inf")


@dataclass(frozen=True)
class Target:
    """An upper bound on a cost: absolute, in parameters, multiply-adds of an image, or seconds."""

    metric: Metric
    value: float
    scope: Scope


@dataclass(frozen=True)
class Latencies:
    """Seconds measured here: of the whole network, and of every site's layer and options alone."""

    batch_size: int
    device: str
    whole: float
    before: tuple[float, ...]
    options: tuple[tuple[float, ...], ...]


@dataclass
class Plan:
    """Printable. Every layer's row, the sites and their options, and arithmetic on architectures.

    An architecture is a sequence of indices, one for each site, into the site's ``options``. Scopes: ``replaced``
    (convolution weights and multiply-adds of the replaced layers alone), ``paper`` (all convolutions but the first; no
    BatchNorm, no classifier), ``whole`` (all parameters, and the multiply-adds that run).
    """

    rows: tuple[Row, ...]
    sites: tuple[Site, ...]
    kept_paper: tuple[int, int]
    totals: tuple[int, int]
    latencies: Latencies | None = None

    def _site(self, site: Site, metric: Metric, scope: Scope, option: Option) -> float:
        if metric == "macs":
            return option.macs
        return option.params if scope == "whole" else option.weights

    def table(self, metric: Metric, scope: Scope = "whole") -> list[list[float]]:
        """Each site's cost of each option."""
        if metric == "latency":
            return [list(row) for row in self._measured().options]
        return [[self._site(site, metric, scope, option) for option in site.options] for site in self.sites]

    def replaced_before(self, metric: Metric, scope: Scope = "whole") -> list[float]:
        """Each site's cost before."""
        if metric == "latency":
            return list(self._measured().before)
        return [self._site(site, metric, scope, site.before) for site in self.sites]

    def before(self, metric: Metric, scope: Scope = "whole") -> float:
        """The uncompressed network's cost."""
        if scope == "replaced":
            return sum(self.replaced_before(metric, scope))
        if metric == "latency":
            return self._measured().whole
        i = METRICS.index(metric)
        if scope == "whole":
            return self.totals[i]
        return sum(self.replaced_before(metric, scope)) + self.kept_paper[i]

    def cost(self, architecture: Codes, metric: Metric, scope: Scope = "whole") -> float:
        table = self.table(metric, scope)
        kept = self.before(metric, scope) - sum(self.replaced_before(metric, scope))
        return kept + sum(row[i] for row, i in zip(table, architecture, strict=True))

    def rates(self, architecture: Codes, metric: Metric, scope: Scope = "whole") -> Rates:
        """PCR for ``params``, FCR for ``macs``; for latency the sum of parts, not a measurement of the whole."""
        return Rates(self.cost(architecture, metric, scope), self.before(metric, scope))

    def range(self, metric: Metric, scope: Scope = "whole") -> Range:
        before, table = self.before(metric, scope), self.table(metric, scope)
        kept = before - sum(self.replaced_before(metric, scope))
        return Range(
            kept + sum(min(row) for row in table),
            kept + sum(sum(row) / len(row) for row in table),
            kept + sum(max(row) for row in table),
            before,
        )

    def lightest(self, metric: Metric, scope: Scope = "whole") -> list[int]:
        return [row.index(min(row)) for row in self.table(metric, scope)]

    def names(self, architecture: Codes) -> dict[str, str]:
        return {site.name: site.options[i].name for site, i in zip(self.sites, architecture, strict=True)}

    def indices(self, names: Mapping[str, str]) -> list[int]:
        """Raises ValueError for a site that ``names`` lacks or an operator that the site does not have."""
        for site in self.sites:
            require(names.get(site.name) in site.names, "compress", f"the operator of {site.name}",
                    f"be one of {', '.join(site.names)}", names.get(site.name))  # fmt: skip
        return [site.names.index(names[site.name]) for site in self.sites]

    def target(self, metric: Metric, value: float | str, scope: Scope = "whole") -> Target:
        """A bound, absolute or as in "40%" of the uncompressed network's cost.

        Raises:
            ValueError: for what no choice of operators reaches; the message gives the least that one does.
        """
        one_of("compress", "metric", metric, METRICS)
        one_of("compress", "scope", scope, SCOPES)
        found = self.range(metric, scope)
        if isinstance(value, str):
            number = value.strip().removesuffix("%").strip()
            percent = value.strip().endswith("%") and number.isascii() and number.replace(".", "", 1).isdigit()
            require(percent, "compress", f"target_{metric}", 'be a number, or a share such as "40%"', value)
            bound = found.before * float(number) / 100
        else:
            if not isinstance(value, Real) or isinstance(value, bool):
                fail_type("compress", f"target_{metric}", 'be a number, or a share such as "40%"', value)
            bound = float(value)
            require(math.isfinite(bound), "compress", f"target_{metric}", "be finite", value)
        reached = found.before / found.least if found.least else float("inf")
        require(
            bound >= found.least,
            "compress",
            f"target_{metric}",
            f"be at least {quantity(metric, found.least)} ({scope} scope: of {quantity(metric, found.before)}, at most "
            f"{reached:.2f} times less), the least that these operators reach in {len(self.sites)} replaced layers",
            bound if metric == "latency" else round(bound),
            hint="replace more layers, use another set of operators, or another scope",
        )
        return Target(metric, bound, scope)

    def _measured(self) -> Latencies:
        if self.latencies is None:
            raise ValueError(
                "compress: latency must be measured before it is asked for; got a plan without it. "
                "Hint: measure_latencies(plan, model, example_inputs)"
            )
        return self.latencies

    def summary(self) -> str:
        """The table of what is reachable."""
        metrics = METRICS if self.latencies is not None else METRICS[:2]
        lines = [f"{'':<18}{'uncompressed':>14}{'most':>14}{'random':>14}{'least':>14}   times less, at most"]
        for metric in metrics:
            for scope in SCOPES:
                if metric == "latency" and scope == "paper":
                    continue
                r = self.range(metric, scope)
                cells = "".join(f"{quantity(metric, v):>14}" for v in (r.before, r.most, r.expected, r.least))
                lines.append(
                    f"{metric + ', ' + scope:<18}{cells}   {r.before / r.least if r.least else float('inf'):.2f}"
                )
        return "\n".join(lines)

    def __str__(self) -> str:
        wide = max((len(row.name) for row in self.rows), default=0)
        kind = max((len(row.kind) for row in self.rows), default=0)
        lines = [f"{len(self.sites)} of {len(self.rows)} layers are replaced"]
        for row in self.rows:
            mark = "replaced" if row.replaced else "kept"
            lines.append(f"  {row.name:<{wide}}  {row.kind:<{kind}}  {mark:<8}  {row.why}")
        return "\n".join([*lines, "", self.summary()])


def quantity(metric: Metric, value: float) -> str:
    return f"{1e3 * value:.3g} ms" if metric == "latency" else f"{round(value):,}"

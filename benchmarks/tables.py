"""From the JSON of a run to its CSV and Markdown: worst cases and verdicts are computed here, never typed."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from cpu.common import Row, Target

Record = dict[str, Any]
HANDED = ("torch", "reference")
ALLOWED_HANDED = 2


def figures(records: list[Record], key: str) -> list[Record]:
    """Every value of a target, with its shape and whether the call was handed to PyTorch."""
    found = []
    for record in records:
        for value in record["values"]:
            if value["key"] == key:
                backend = record["backends"].get(value["layout"], "")
                found.append({**value, "shape": record["shape"], "handed": backend in HANDED, "kind": record["kind"]})
    return found


def worst(records: list[Record], target: Target) -> Record | None:
    """The worst value of those that our kernels computed; of all if every shape was handed over."""
    found = figures(records, target.key)
    own = [f for f in found if not f["handed"]] or found
    if not own:
        return None
    return (max if target.less else min)(own, key=lambda f: f["value"])


def handed(records: list[Record], target: Target) -> list[str]:
    return sorted({f["shape"] for f in figures(records, target.key) if f["handed"]})


def verdict(records: list[Record], target: Target) -> str:
    """'goal met', 'floor met' (the goal is not), 'below the floor', or why there is no verdict."""
    found = worst(records, target)
    if found is None:
        return "not measured"
    if target.goal is None or target.floor is None:
        return "for information"
    if len(handed(records, target)) > ALLOWED_HANDED:
        return "below the floor"
    sign = -1 if target.less else 1
    if sign * found["value"] >= sign * target.goal:
        return "goal met"
    return "floor met" if sign * found["value"] >= sign * target.floor else "below the floor"


def number(value: float | None, unit: str = "") -> str:
    if value is None:
        return "-"
    return f"{value:.3g}{unit}"


def summary(rows: tuple[Row, ...], data: Record) -> list[list[str]]:
    lines = []
    for row in rows:
        records = data["rows"].get(row.name, {}).get("records", [])
        for target in row.targets:
            found = worst(records, target)
            where = ""
            if found is not None:
                where = f"{found['shape']} {found['layout']}; {found['against']}"
                if names := handed(records, target):
                    where += f"; handed to PyTorch: {', '.join(names)}"
            lines.append(
                [
                    row.title,
                    target.label,
                    number(target.goal, target.unit),
                    number(target.floor, target.unit),
                    number(found["value"], target.unit) if found else "-",
                    number(found["median"], target.unit) if found else "-",
                    where,
                    verdict(records, target),
                ]
            )
    return lines


def _table(head: list[str], lines: list[list[str]]) -> str:
    rule = ["---"] * len(head)
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *lines])


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds >= 1e-4 else f"{seconds * 1e3:.3f}"


def details(row: Row, records: list[Record]) -> str:
    lines = []
    for record in records:
        mine = {n: t for n, t in record["times"].items() if n.startswith("lightkernels")}
        theirs = {n: t for n, t in record["times"].items() if n not in mine}
        fast = sorted(theirs, key=lambda n: theirs[n]["min"])
        lines.append(
            [
                f"{record['shape']} {record['kind']}",
                ", ".join(f"{n.removeprefix('lightkernels ')} {_milliseconds(t['min'])}" for n, t in mine.items()),
                ", ".join(f"{n} {_milliseconds(theirs[n]['min'])}" for n in fast[:3]),
                ", ".join(f"{v['key']} {v['layout']} {v['value']:.3g}" for v in record["values"]),
            ]
        )
    head = ["shape, pass", "ours, ms", "fastest others, ms", "figures"]
    return f"### {row.title}\n\n" + _table(head, lines)


def notes(data: Record) -> list[str]:
    found = []
    faults = sum(t["faults"] for row in data["rows"].values() for r in row["records"] for t in r["times"].values())
    found.append(f"Minor page faults inside timed regions, whole run: {faults}.")
    loads = [row["load"] for row in data["rows"].values()]
    if loads:
        found.append(f"Load average of the machine when a row began: {min(loads):.2g} to {max(loads):.2g}.")
    earlier: dict[str, list[str]] = {}
    for name, row in data["rows"].items():
        if row.get("commit", data["machine"]["commit"]) != data["machine"]["commit"]:
            earlier.setdefault(f"{row['commit']}, {row['date']}", []).append(name)
    found += [f"Measured at an earlier commit ({when}): {', '.join(names)}." for when, names in earlier.items()]
    refused = {
        f"{name} ({r['dtype']}): {why}"
        for row in data["rows"].values()
        for r in row["records"]
        for name, why in r["refused"].items()
    }
    found += [f"Not timed: {text}" for text in sorted(refused)]
    return found


def markdown(rows: tuple[Row, ...], data: Record) -> str:
    machine, settings = data["machine"], data["settings"]
    facts = ", ".join(f"{k} {machine[k]}" for k in ("commit", "date", "lightkernels", "torch", "python", "system"))
    chip = f"{machine['processor']}, {machine['threads']} threads"
    isa = f"ours {machine['isa']}, torch {machine['torch_isa']}, oneDNN's limit: {machine['onednn_max_isa']}"
    head = ["case", "compared", "goal", "floor", "worst", "by medians", "where; against what", "verdict"]
    parts = [
        f"# {chip}",
        f"Instruction sets: {isa}. {facts}. Rounds {settings['rounds']}, at least {settings['min_time']} s each.",
        "Figures are the worst case over shapes and over both of our layouts; the minimum of interleaved samples "
        "decides, the ratio of medians stands beside it. Written by `benchmarks/run.py`.",
        _table(head, summary(rows, data)),
        "\n".join(f"- {note}" for note in notes(data)),
        "## Shapes",
    ]
    for row in rows:
        if row.name in data["rows"]:
            parts.append(details(row, data["rows"][row.name]["records"]))
    return "\n\n".join(parts) + "\n"


def readme(rows: tuple[Row, ...], runs: list[Record]) -> str:
    """The short table: the worst case of each row with a goal that was measured, one column a run."""
    head = ["case", "compared", "goal", *(f"{d['machine']['isa']}, {d['machine']['threads']} threads" for d in runs)]
    lines = []
    for row in rows:
        for target in (t for t in row.targets if t.goal is not None):
            cells = []
            for data in runs:
                records = data["rows"].get(row.name, {}).get("records", [])
                found = worst(records, target)
                cells.append(f"{number(found['value'], target.unit)}, {verdict(records, target)}" if found else "-")
            sign = "at most " if target.less else ""
            if cells != ["-"] * len(runs):
                lines.append([row.title, target.label, sign + number(target.goal, target.unit), *cells])
    return _table(head, lines)


def write_csv(path: Path, data: Record) -> None:
    head = ["row", "shape", "dtype", "kind", "candidate", "backend", "min_s", "median_s", "spread", "samples", "faults"]
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow([*head, "error", "figure", "value"])
        for name, row in data["rows"].items():
            for r in row["records"]:
                common = [name, r["shape"], r["dtype"], r["kind"]]
                for candidate, t in r["times"].items():
                    backend = r["backends"].get(candidate.split()[1]) if candidate.startswith("lightkernels") else None
                    values = [f"{t['min']:.6g}", f"{t['median']:.6g}", t["spread"], t["samples"], t["faults"]]
                    out.writerow([*common, candidate, backend or "torch", *values, r["errors"].get(candidate), "", ""])
                for v in r["values"]:
                    figure = f"{v['key']} {v['layout']}"
                    out.writerow([*common, v["against"], "", "", "", "", "", "", "", figure, f"{v['value']:.4g}"])

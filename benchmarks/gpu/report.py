"""From the records of a run to tables: fractions of the copy ceiling, times over the best baseline, what fell short."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

from gpu import mldn, rsdc
from gpu.plan import SMALL_BYTES, SMALL_SECONDS, Expected, Group, expected
from gpu.predicted import predicted
from gpu.rsdc import RsdcGroup

Record = dict[str, Any]
NONE = "not measured"
OURS = ("nchw", "nhwc", "cuda nchw", "cuda nhwc")  # Triton's kernels, and the native ones
HEAD = (
    "Medians of CUDA-graph replays, candidates in turn, inputs cold in the L2 cache on both sides. The fraction is the "
    "least traffic of the call over its time and over the measured copy ceiling; the baseline is the fastest of all, "
    "in either layout, with and without cuDNN's search, in float32 with TF32 where cuDNN uses it. Written by "
    "`benchmarks/gpu_suite.py`."
)


def group_of(record: Record) -> Group:
    form = rsdc.RsdcGroup if record["variant"] in rsdc.VARIANTS else Group
    if record["variant"] in mldn.BLOCK_VARIANTS:
        form = mldn.BlockGroup
    elif record["variant"] in mldn.CONDENSED_VARIANTS:
        form = mldn.CondensedGroup
    return form(record["shape"], record["dtype"], record["variant"], record["kind"])


def expectation(group: Group, layout: str) -> Expected:
    if isinstance(group, (mldn.BlockGroup, mldn.CondensedGroup)):
        return mldn.expected(group)
    return rsdc.expected(group) if isinstance(group, rsdc.RsdcGroup) else expected(group, layout)


FORECAST = (
    "For an H200, from what the kernels move at 0.7 of 4.3 TB/s or multiply at 150 TFLOP/s, padding included, and 2 us "
    "a graph node; `benchmarks/gpu/mldn.py`."
)


def forecasts() -> list[list[str]]:
    return [
        [g.key, f"{g.bytes() / 1e6:.0f}", f"{g.flops() / 1e9:.1f}", _micro(forecast(g)).partition(".")[0]]
        for g in mldn.groups()
    ]


def forecast(group: Group) -> float | None:
    """The seconds that were forecast before the first run, where they were."""
    return group.forecast() if isinstance(group, (mldn.BlockGroup, mldn.CondensedGroup)) else None


def ceiling(records: list[Record], name: str) -> float | None:
    return next((r["value"] for r in records if r["part"] == "ceilings" and r["key"] == name and "value" in r), None)


def merged(records: list[Record]) -> list[Record]:
    """Operator records, the times of torch.compile scaled into them by our own time in both runs."""
    found = {r["key"]: {**r, "times": dict(r["times"])} for r in records if r["part"] == "ops"}
    for r in records:
        if r["part"] != "compile" or r["key"] not in found:
            continue
        base = found[r["key"]]["times"]
        both = [n for n in r["times"] if n.startswith("lightkernels") and n in base]
        scale = sum(base[n]["median"] / r["times"][n]["median"] for n in both) / len(both) if both else 1.0
        for name, t in r["times"].items():
            if not name.startswith("lightkernels"):
                base[name] = {**t, "median": t["median"] * scale, "min": t["min"] * scale}
    return list(found.values())


def rows(records: list[Record]) -> Iterator[Record]:
    """One row for each of our layouts in each group: time, fraction of the copy ceiling, best baseline, verdict."""
    copy = ceiling(records, "copy")
    for record in merged(records):
        group = group_of(record)
        theirs = {n: t["median"] for n, t in record["times"].items() if not n.startswith("lightkernels")}
        square = min((t for n, t in theirs.items() if n.startswith("3x3")), default=None)
        theirs = {n: t for n, t in theirs.items() if not n.startswith("3x3")}
        best = min(theirs, key=lambda n: theirs[n]) if theirs else None
        for name in OURS:
            label, layout = f"lightkernels {name}", name.split()[-1]
            mine = record["times"].get(label)
            if mine is None and label not in record["refused"] and name != layout:
                continue  # an operator that has no native kernels yet
            want = expectation(group, layout)
            row: Record = {
                "group": group,
                "name": name,
                "layout": layout,
                "want": want,
                "best": best,
                "best_seconds": theirs[best] if best else None,
                "seconds": mine["median"] if mine else None,
                "spread": mine["spread"] if mine else None,
                "error": record["errors"].get(label),
                "why": record["refused"].get(label),
                "predicted": predicted(group, name) if type(group) in (Group, RsdcGroup, mldn.CondensedGroup) else None,
                "fraction": None,
                "ratio": None,
                "square": None,
            }
            if mine and square:
                row["square"] = mine["median"] / square
            if mine and copy:
                row["fraction"] = record["bytes"] / mine["median"] / copy
            if mine and best:
                row["ratio"] = theirs[best] / mine["median"]
            row["short"] = shortfalls(row, record["bytes"], copy)
            yield row


def shortfalls(row: Record, least: int, copy: float | None) -> list[str]:
    """What the targets ask and the row does not reach; tensors in the small class get a fixed time on top."""
    found = []
    if row["seconds"] is None:
        return [row["why"] or NONE]
    want = row["want"]
    extra = SMALL_SECONDS if least <= SMALL_BYTES else 0.0
    for name in ("ship", "goal"):
        fraction = getattr(want, name)
        if fraction and copy and row["seconds"] > least / copy / fraction + extra:
            found.append(f"{row['fraction']:.2f} of the copy ceiling, {name} {fraction:.2f}")
            break
    if want.speedup and row["ratio"] is not None and row["ratio"] < want.speedup:
        found.append(f"{row['ratio']:.2f}x the best, goal {want.speedup:g}x")
    if want.square and row["square"] is not None and row["square"] > want.square:
        found.append(f"{row['square']:.2f} of a 3x3's time, goal {want.square:g}")
    return found


def _micro(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e6:.1f}"


def _number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else format(value, form)


def _table(head: list[str], lines: list[list[str]]) -> str:
    if not lines:
        return NONE.capitalize() + "."
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines])


def markdown(records: list[Record]) -> str:
    found = list(rows(records))
    machine = next((r for r in records if r["part"] == "env"), {})
    facts = ", ".join(f"{k} {v}" for k, v in machine.get("facts", {}).items())
    lines = [
        [
            str(r["group"].key),
            r["name"],
            _micro(r["seconds"]),
            _micro(r["predicted"] or forecast(r["group"])),
            _number(r["fraction"]),
            f"{_micro(r['best_seconds'])} {r['best'] or ''}",
            _number(r["ratio"], ".2f") + ("x" if r["ratio"] is not None else ""),
            _number(r["square"]),
            "; ".join(r["short"]) or "reached",
        ]
        for r in found
    ]
    short = [f"- {r['group'].key} {r['name']}: {'; '.join(r['short'])}" for r in found if r["short"]]
    wrong = [
        f"- {r['key']}: {name}: {why}"
        for r in records
        if r["part"] in ("ops", "compile", "warm", "ceilings", "install", "sanitize")
        for name, why in _refused(r).items()
    ]
    ceilings = [
        [r["key"], f"{r['value']:.4g} {r['unit']}" if "value" in r else r.get("refused", NONE)]
        for r in records
        if r["part"] == "ceilings"
    ]
    tests = [
        [r["key"], r.get("summary", NONE), f"{r.get('seconds', 0):.0f} s"]
        for r in records
        if r["part"] in ("tests", "sanitize")
    ]
    return (
        "\n\n".join(
            [
                "# GPU",
                facts or "No GPU results have been measured yet.",
                HEAD,
                "## Ceilings",
                _table(["what", "measured"], ceilings),
                "## Tests",
                _table(["run", "result", "time"], tests),
                "## What fell short of the targets",
                "\n".join(short) or (NONE.capitalize() + "." if not found else "Nothing."),
                "## Every call, microseconds",
                _table(
                    ["call", "ours", "time", "forecast", "of copy", "best other", "ratio", "of a 3x3", "targets"],
                    lines,
                ),
                "## Forecasts of mldn_block and condensed_conv2d, written before the first run",
                FORECAST,
                _table(["call", "least MB", "GFLOP", "microseconds"], forecasts()),
                "## Failed, refused or not timed",
                "\n".join(wrong) or ("Nothing." if found else NONE.capitalize() + "."),
            ]
        )
        + "\n"
    )


def _refused(record: Record) -> dict[str, str]:
    refused = record.get("refused", {})
    return refused if isinstance(refused, dict) else {"": refused}


def csv_text(records: list[Record]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = ["part", "shape", "dtype", "variant", "kind", "candidate", "median_s", "min_s", "spread", "samples"]
    writer.writerow([*head, "in_graph", "error", "peak_bytes", "least_bytes", "flops"])
    for r in records:
        for name, t in r.get("times", {}).items():
            line = [r["part"], r["shape"], r["dtype"], r["variant"], r["kind"], name, t["median"], t["min"]]
            line += [t["spread"], t["samples"], t["graph"], r["errors"].get(name), r["peaks"].get(name)]
            writer.writerow([*line, r["bytes"], r["flops"]])
    return out.getvalue()


def summary(records: list[Record]) -> str:
    """A short table for the end of a log."""
    found = [r for r in rows(records) if r["seconds"] is not None]
    lines = [
        f"{r['group'].key:<28} {r['name']:<9}  {_micro(r['seconds']):>9} us  copy {_number(r['fraction'])}"
        f"  {_number(r['ratio'])}x  {'; '.join(r['short']) or 'reached'}"
        for r in found
    ]
    failed = sum(1 for r in rows(records) if r["seconds"] is None)
    lines.append(
        f"{len(found)} calls of ours timed, {failed} not; {sum(bool(r['short']) for r in found)} short of a target"
    )
    return "\n".join(lines)


def plot(records: list[Record], path: str) -> bool:
    """Fractions of the copy ceiling and ratios over the best baseline; False where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = [r for r in rows(records) if r["seconds"] is not None and r["group"].kind != "step"][:48]
    if not found:
        return False
    figure, axes = plt.subplots(1, 2, figsize=(12, 1.2 + 0.22 * len(found)), sharey=True)
    colours = ["#2f6db3" if r["layout"] == "nchw" else "#e07b39" for r in found]
    names = [f"{r['group'].key} {r['name']}" for r in found]
    axes[0].barh(names, [r["fraction"] or 0 for r in found], color=colours, height=0.7)
    axes[0].set_xlabel("least traffic / time, of the copy ceiling")
    axes[0].axvline(1, color="#22272e", lw=0.9)
    goals = [(i, r["want"].goal) for i, r in enumerate(found) if r["want"].goal]
    axes[0].scatter([g for _, g in goals], [i for i, _ in goals], marker="|", s=60, color="#3a9d5d", zorder=3)
    axes[1].barh(names, [r["ratio"] or 0 for r in found], color=colours, height=0.7)
    axes[1].set_xlabel("times faster than the best of PyTorch and cuDNN")
    axes[1].axvline(1, color="#22272e", lw=0.9)
    axes[0].invert_yaxis()
    for one in axes:
        one.tick_params(length=0, labelsize=7)
        for side in ("top", "right", "left"):
            one.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=130, facecolor="white")
    return True

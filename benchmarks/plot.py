"""Draws the README's plot and prints its tables, from the committed result files. Needs matplotlib."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import machine  # noqa: E402

machine.find_package()
import matplotlib  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import tables  # noqa: E402
from cpu.rows import ROWS, TABLES  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402

LAYOUTS = {"nchw": ("#2f6db3", 0.14, "o"), "nhwc": ("#e07b39", -0.14, "D")}
NAMES = {"avx512": "AVX-512", "avx2": "AVX2"}
INK, FAINT = "#22272e", "#b8bec6"


def lines(data: dict[str, Any]) -> list[tuple[str, Any, list[dict[str, Any]]]]:
    """The targets that are speedups with a goal and were measured, in the table's order."""
    found = []
    for row in ROWS:
        records = data["rows"].get(row.name, {}).get("records", [])
        for target in row.targets:
            values = tables.figures(records, target.key)
            if values and target.goal is not None and not target.less and row.name not in ("arithmetic", "threads"):
                found.append((f"{row.title}\n{target.label}", target, values))
    return found


def draw(axes: Any, data: dict[str, Any]) -> None:
    found = lines(data)
    for at, (_, target, values) in enumerate(found):
        axes.plot([target.floor] * 2, [at - 0.36, at + 0.36], color=FAINT, lw=2.2, zorder=1, solid_capstyle="round")
        axes.plot([target.goal] * 2, [at - 0.36, at + 0.36], color="#3a9d5d", lw=2.2, zorder=1, solid_capstyle="round")
        for layout, (colour, shift, marker) in LAYOUTS.items():
            xs = [v["value"] for v in values if v["layout"] == layout]
            if xs:
                axes.plot([min(xs), max(xs)], [at - shift] * 2, color=colour, lw=1, alpha=0.45, zorder=2)
                axes.scatter(xs, [at - shift] * len(xs), s=20, color=colour, marker=marker, lw=0, alpha=0.9, zorder=3)
    axes.axvline(1, color=INK, lw=1, zorder=0.9)
    axes.set_xscale("log")
    axes.set_yticks(range(len(found)), [label for label, _, _ in found], fontsize=8, linespacing=1.25)
    axes.set_ylim(len(found) - 0.4, -0.6)
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500) if _shown(t, axes)]
    axes.set_xticks(ticks, [f"{t:g}x" for t in ticks])
    axes.minorticks_off()
    axes.grid(axis="x", color="#e9ecef")
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=INK)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    m = data["machine"]
    title = f"{NAMES.get(m['isa'], m['isa'])}, {m['threads']} threads"
    axes.set_title(title, loc="left", fontsize=10, color=INK, pad=8, fontweight="bold")
    axes.set_xlabel("times faster than the best of PyTorch", fontsize=9, color=INK)


def _shown(tick: float, axes: Any) -> bool:
    low, high = axes.get_xlim()
    return bool(low <= tick <= high)


def legend(figure: Any) -> None:
    handles = [
        Line2D([], [], color=colour, marker=marker, ls="", ms=5, label=f"{name.upper()}, one dot a shape")
        for name, (colour, _, marker) in LAYOUTS.items()
    ]
    handles.append(Line2D([], [], color="#3a9d5d", lw=2.2, label="goal for the worst shape"))
    handles.append(Line2D([], [], color=FAINT, lw=2.2, label="least that counts"))
    figure.legend(handles=handles, loc="lower center", ncols=2, frameon=False, fontsize=8.5, labelcolor=INK)


def plot(files: list[Path], out: Path) -> None:
    sets = [json.loads(f.read_text(encoding="utf-8")) for f in files]
    sets = [d for d in sets if lines(d)]
    if not sets:
        raise SystemExit("nothing to draw: no result file holds a speedup")
    height = 1.5 + 0.43 * max(len(lines(d)) for d in sets)
    figure, axes = plt.subplots(1, len(sets), figsize=(2.6 + 4.4 * len(sets), height), sharey=True, squeeze=False)
    low = min(v["value"] for d in sets for _, _, values in lines(d) for v in values)
    high = max(max(v["value"], t.goal) for d in sets for _, t, values in lines(d) for v in values)
    for one, data in zip(axes[0], sets, strict=True):
        one.set_xlim(min(0.8, low / 1.2), high * 1.3)
        one.set_xscale("log")
        draw(one, data)
    m = sets[0]["machine"]
    text = f"{m['processor']}, torch {m['torch']}, lightkernels {m['commit']}, {m['date'][:10]}"
    figure.text(0.995, 0.995, text, ha="right", va="top", fontsize=7, color="#6b7280")
    legend(figure)
    figure.tight_layout(rect=(0, 0.06, 1, 0.985))
    figure.savefig(out, dpi=160, facecolor="white")
    print(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="result files; benchmarks/results/cpu-*.json if none")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "cpu.png")
    args = parser.parse_args()
    files = args.files or sorted((HERE / "results").glob("cpu-*.json"), reverse=True)
    plot(files, args.out)
    print(_table(ROWS, files))
    for op, rows in TABLES.items():
        if own := sorted((HERE / "results").glob(f"{op}-cpu-*.json"), reverse=True):
            print(f"\n{op}\n\n{_table(rows, own)}")


def _table(rows: Any, files: list[Path]) -> str:
    return tables.readme(rows, [json.loads(f.read_text(encoding="utf-8")) for f in files])


if __name__ == "__main__":
    main()

"""Measures the table of speed goals row by row and writes it as JSON, CSV and Markdown.

    python benchmarks/run.py                     all rows, with the instruction set the package chooses
    python benchmarks/run.py --isa auto,avx2     the same, then again with both sides restricted to AVX2
    python benchmarks/run.py concat_forward add_step --quick
    python benchmarks/run.py --op rsdc2d         the table of another operator

A run goes on where it was stopped: rows that the result file already holds, from the same commit, machine and
settings, are not measured again (``--fresh`` starts over). Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import machine  # noqa: E402

QUICK = ("64x32x32x32", "8x96x56x56", "32x384x14x14")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help="rows to measure; all of them if none is named")
    parser.add_argument(
        "--op", default="multi_dwconv2d", help="the operator's table: multi_dwconv2d, rsdc2d or mldn_block"
    )
    parser.add_argument("--list", action="store_true", help="print the rows and stop")
    parser.add_argument("--isa", type=listed, default=["auto"], help="auto, avx2, avx512, or several: auto,avx2")
    parser.add_argument("--quick", action="store_true", help="three shapes, few rounds, no torch.compile; for a look")
    parser.add_argument("--shapes", type=listed, help="only these, such as 64x32x32x32,1x96x56x56")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--min-time", type=float, help="seconds a candidate is timed in each round")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--threads", type=int, help="torch's number of threads; its own choice if not given")
    parser.add_argument("--out", type=Path, help="folder of the results; benchmarks/results, or runs/ for a part")
    parser.add_argument("--fresh", action="store_true", help="measure again what the result file already holds")
    parser.add_argument(
        "--keep", action="store_true", help="keep rows of earlier commits, but for those that are named"
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if unknown := set(args.isa) - set(machine.ISA_ENVIRONMENT):
        parser.error(f"--isa must be of {', '.join(machine.ISA_ENVIRONMENT)}; got {', '.join(sorted(unknown))}")
    return args


def listed(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def whole(args: argparse.Namespace) -> bool:
    """Whether the run makes the committed table: every shape, every baseline."""
    return not (args.quick or args.shapes or args.no_compile)


def in_fresh_processes(args: argparse.Namespace) -> int:
    """One process an instruction set: libraries read it once, when they are loaded."""
    for isa in args.isa:
        env = machine.environment(isa, os.environ)
        done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--child"], env=env, check=False)
        if done.returncode:
            return done.returncode
    return 0


def save(path: Path, text: str) -> None:
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def previous(path: Path, head: dict[str, Any], fresh: bool, keep: bool) -> dict[str, Any]:
    """Rows of an earlier run of the same kind, or none; with ``keep``, of whatever commit."""
    if fresh or not path.exists():
        return {}
    old = json.loads(path.read_text(encoding="utf-8"))
    free = ("date", "commit") if keep else ("date",)
    same = all(old["machine"].get(k) == v for k, v in head["machine"].items() if k not in free)
    if not same or old["settings"] != head["settings"]:
        return {}
    return {name: {**origin(old), **row} for name, row in old["rows"].items()}


def origin(data: dict[str, Any]) -> dict[str, str]:
    return {key: data["machine"][key] for key in ("commit", "date")}


def main() -> int:
    args = arguments()
    machine.find_package()
    if not (args.list or args.child):
        return in_fresh_processes(args)
    import tables
    from cpu.common import Settings
    from cpu.rows import TABLES

    if args.op not in TABLES:
        raise SystemExit(f"--op must be one of {', '.join(TABLES)}; got {args.op}")
    rows = TABLES[args.op]
    if args.list:
        for row in rows:
            print(f"{row.name:<18} {row.title}")
        return 0
    import torch

    from lightkernels._core import measure

    unknown = set(args.rows) - {row.name for row in rows}
    if unknown:
        raise SystemExit(f"no such row: {', '.join(sorted(unknown))}; --list shows them")
    steady = measure.steady_memory(2**30)
    if args.threads:
        torch.set_num_threads(args.threads)
    shapes = tuple(args.shapes) if args.shapes else QUICK if args.quick else None
    settings = Settings(
        rounds=args.rounds or (3 if args.quick else 5),
        min_time=args.min_time or (0.02 if args.quick else 0.05),
        compile=not (args.no_compile or args.quick),
        shapes=shapes,
    )
    described = {
        "rounds": settings.rounds,
        "min_time": settings.min_time,
        "compile": settings.compile and measure.has_compiler(),
    }
    data: dict[str, Any] = {"machine": machine.describe(), "settings": {**described, "shapes": shapes and [*shapes]}}
    data["settings"]["steady_memory"] = steady
    if data["machine"]["isa"].startswith("no native core"):
        raise SystemExit(f"{data['machine']['isa']}; there is nothing of ours to measure")
    out = args.out or (HERE / "results" if whole(args) else HERE.parent / "runs" / "bench")
    out.mkdir(parents=True, exist_ok=True)
    name = "cpu" if args.op == "multi_dwconv2d" else f"{args.op}-cpu"
    stem = f"{name}-{data['machine']['isa']}-{data['machine']['threads']}t"
    path = out / f"{stem}.json"
    data["rows"] = previous(path, data, args.fresh, args.keep)
    print(f"{path}: {data['machine']['processor']}, commit {data['machine']['commit']}", flush=True)
    if machine.load() > 0.7:
        print(f"warning: the load average is {machine.load():.2g}; times will not be the machine's own", flush=True)
    chosen = [row for row in rows if not args.rows or row.name in args.rows]
    start = time.monotonic()
    for position, row in enumerate(chosen, 1):
        label = f"[{position}/{len(chosen)}] {row.name}"
        if row.name in data["rows"] and not ((args.fresh or args.keep) and args.rows):
            print(f"{label}: kept", flush=True)
            continue
        began, load, records = time.monotonic(), machine.load(), []
        for record in row.run(settings):
            records.append(record)
            values = ", ".join(f"{v['key']} {v['layout']} {v['value']:.3g}" for v in record["values"])
            print(f"{label} {record['shape']} {record['dtype']} {record['kind']}: {values}", flush=True)
        seconds = round(time.monotonic() - began, 1)
        data["rows"][row.name] = {**origin(data), "seconds": seconds, "load": round(load, 2), "records": records}
        data["rows"] = {r.name: data["rows"][r.name] for r in rows if r.name in data["rows"]}
        save(path, json.dumps(data, indent=1) + "\n")
        tables.write_csv(path.with_suffix(".csv"), data)
        save(path.with_suffix(".md"), tables.markdown(rows, data))
        for target in row.targets:
            found = tables.worst(records, target)
            figure = tables.number(found["value"], target.unit) if found else "-"
            print(f"{label} {target.label}: {figure}, {tables.verdict(records, target)} ({seconds:.0f} s)", flush=True)
    print(f"{time.monotonic() - start:.0f} s; {path.with_suffix('.md')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Compares two result files, or this tree with another commit, call by call.

    python benchmarks/compare.py OLD.json NEW.json
    python benchmarks/compare.py --ref v0.1.0                        results committed there, with those here
    python benchmarks/compare.py --measure main~3 concat_forward     builds that commit and measures both now

Ratios are OLD's time over NEW's: above 1 means that NEW is faster. Times of PyTorch's own candidates are compared too:
where they moved as well, the machine changed and not the code.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


def times(data: dict[str, Any]) -> dict[tuple[str, ...], float]:
    """Seconds by (row, shape, dtype, kind, candidate)."""
    found = {}
    for name, row in data["rows"].items():
        for record in row["records"]:
            for candidate, timing in record["times"].items():
                found[name, record["shape"], record["dtype"], record["kind"], candidate] = timing["min"]
    return found


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(math.log(v) for v in values) / len(values)) if values else math.nan


def compare(old: dict[str, Any], new: dict[str, Any], noise: float) -> list[str]:
    """One line a call of ours that changed by more than ``noise``, then the means."""
    before, after = times(old), times(new)
    shared = [key for key in after if key in before]
    ratios = {key: before[key] / after[key] for key in shared}
    lines = [f"old: {describe(old)}", f"new: {describe(new)}", ""]
    for key in sorted(shared, key=lambda k: ratios[k]):
        if key[-1].startswith("lightkernels") and abs(math.log(ratios[key])) > math.log1p(noise):
            lines.append(
                f"{ratios[key]:6.2f}x  {before[key] * 1e3:9.3f} -> {after[key] * 1e3:9.3f} ms  {' '.join(key)}"
            )
    ours = [ratios[k] for k in shared if k[-1].startswith("lightkernels")]
    theirs = [ratios[k] for k in shared if not k[-1].startswith("lightkernels")]
    lines.append(f"ours: {geometric_mean(ours):.3f}x over {len(ours)} calls")
    lines.append(f"PyTorch's: {geometric_mean(theirs):.3f}x over {len(theirs)} calls (the machine, not the code)")
    return lines


def describe(data: dict[str, Any]) -> str:
    m = data["machine"]
    return f"{m['commit']}, {m['date']}, {m['processor']}, {m['isa']}, {m['threads']} threads, torch {m['torch']}"


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def at_ref(ref: str, path: Path) -> dict[str, Any]:
    """A result file as it was committed at ``ref``."""
    where = f"{ref}:{path.resolve().relative_to(ROOT).as_posix()}"
    run = subprocess.run(["git", "-C", str(ROOT), "show", where], capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"{where} is not there: {run.stderr.strip()}")
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def measure(tree: Path, rows: list[str], out: Path) -> dict[str, Any]:
    """Measures with the benchmarks of this tree and the package of another, built in place there."""
    env = {**os.environ, "PYTHONPATH": str(tree)}
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(build, cwd=tree, env={"LIGHTKERNELS_CUDA": "OFF", **env}, check=True)
    command = [sys.executable, str(HERE / "run.py"), *rows, "--quick", "--fresh", "--out", str(out)]
    subprocess.run(command, cwd=tree, env=env, check=True)
    return read(next(out.glob("*.json")))


def measure_ref(ref: str, rows: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", "-q", str(tree), ref], check=True)
        try:
            old = measure(tree, rows, Path(folder) / "old")
            return old, measure(ROOT, rows, Path(folder) / "new")
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ref", help="compare the committed results of this commit with those of the tree")
    parser.add_argument("--measure", metavar="REF", help="build this commit, then measure it and the tree")
    parser.add_argument("--noise", type=float, default=0.05, help="changes below this fraction are not printed")
    parser.add_argument("what", nargs="*", help="two result files, or rows after --measure")
    args = parser.parse_args()
    if args.measure:
        pairs = [measure_ref(args.measure, args.what)]
    elif args.ref:
        files = [Path(w) for w in args.what] or sorted((HERE / "results").glob("cpu-*.json"))
        pairs = [(at_ref(args.ref, f), read(f)) for f in files]
    elif len(args.what) == 2:
        pairs = [(read(Path(args.what[0])), read(Path(args.what[1])))]
    else:
        parser.error("give two result files, --ref or --measure")
    for old, new in pairs:
        print("\n".join(compare(old, new, args.noise)), end="\n\n")


if __name__ == "__main__":
    main()

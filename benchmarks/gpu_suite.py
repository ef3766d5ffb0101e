"""Everything that needs a GPU, in one call of at most nine minutes: build, tests, ceilings, speed, tables, one archive.

    python benchmarks/gpu_suite.py --out results                    all parts
    python benchmarks/gpu_suite.py --out results --part ops         one part
    python benchmarks/gpu_suite.py --out results --resume old.jsonl what an earlier call has measured is kept
    python benchmarks/gpu_suite.py --out /tmp/x --dry-run           rehearsal on the CPU with invented times

Each part runs in a process of its own with its share of the time, and writes every record at once to
``gpu_results.jsonl``, so that a crash or the end of the time costs one record. Needs torch with CUDA, Triton and
pytest; nvcc, CMake, ninja and pybind11 to build; matplotlib only for the plot. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))

Record = dict[str, Any]
# Parts in order, and the most seconds of each; time that one leaves goes to those after it.
PARTS = {"env": 30, "install": 110, "ceilings": 40, "tests": 110, "sanitize": 45, "warm": 80, "ops": 400, "compile": 60}
TOTAL = 525
RESERVE = 12  # for the tables and the archive
COMPILED = ("concat forward", "concat step", "mldn-eval forward", "mldn-train step", "condensed forward")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu_results")))
    parser.add_argument("--part", choices=[*PARTS, "report"], action="append", help="only this part; may be repeated")
    parser.add_argument("--resume", type=Path, help="records of an earlier call; what is in them is not measured again")
    parser.add_argument("--seconds", type=float, default=TOTAL, help="time for everything")
    parser.add_argument("--only", default="", help="only groups whose name holds this, such as 'S1 bf16 concat'")
    parser.add_argument("--limit", type=int, help="at most so many groups")
    parser.add_argument("--workers", type=int, default=8, help="processes that compile at the same time")
    parser.add_argument("--commit", help="what is measured, where the tree came without git")
    parser.add_argument("--dry-run", action="store_true", help="rehearse on the CPU; times are invented")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--worker", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def read(path: Path) -> list[Record]:
    """Whole records; a line that a killed process left unfinished is dropped."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


class Results:
    """The file of records, appended to by every part."""

    def __init__(self, out: Path) -> None:
        self.path = out / "gpu_results.jsonl"

    def add(self, record: Record) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def done(self, part: str) -> set[str]:
        return {r["key"] for r in read(self.path) if r["part"] == part}


def device(dry: bool) -> Any:
    from gpu.device import Cuda, Rehearsal

    return Rehearsal() if dry else Cuda()


def wanted(args: argparse.Namespace) -> list[Any]:
    from gpu.ops import all_groups

    found = [g for g in all_groups() if args.only in g.key]
    return found[: args.limit] if args.limit else found


# Parts. Each yields records; the child process writes them.


def env(args: argparse.Namespace, done: set[str]) -> Iterator[Record]:
    import machine
    import torch

    facts = {"commit": args.commit or machine.commit(), "torch": torch.__version__, "python": platform.python_version()}
    try:
        import triton

        facts["triton"] = triton.__version__
    except ImportError:
        facts["triton"] = "missing"
    if torch.cuda.is_available():
        p = torch.cuda.get_device_properties(0)
        facts |= {"device": p.name, "capability": f"{p.major}.{p.minor}", "multiprocessors": p.multi_processor_count}
        facts |= {"memory": p.total_memory, "cudnn": torch.backends.cudnn.version(), "cuda": torch.version.cuda}
        facts["tf32"] = torch.backends.cudnn.allow_tf32
    smi = shutil.which("nvidia-smi")
    if smi:
        query = "--query-gpu=driver_version,clocks.sm,clocks.mem,power.limit,temperature.gpu"
        run = subprocess.run([smi, query, "--format=csv,noheader"], capture_output=True, text=True, check=False)
        facts["nvidia-smi"] = run.stdout.strip()
    nvcc = shutil.which("nvcc")
    if nvcc:
        run = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False)
        facts["nvcc"] = run.stdout.strip().splitlines()[-1]
    yield {"part": "env", "key": "env", "facts": facts}


def install(args: argparse.Namespace, done: set[str]) -> Iterator[Record]:
    """Offline, for this chip alone, from what the machine has."""
    command = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index", "-v", "."]
    archs = "-DLIGHTKERNELS_CUDA_ARCHS=90a-real"
    settings = {"LIGHTKERNELS_CUDA": "AUTO", "CMAKE_ARGS": archs}
    if args.dry_run:
        print("would run:", *(f"{k}={v}" for k, v in settings.items()), *command)
        return
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        ignore = shutil.ignore_patterns(".git", "build", "*.so", "runs", "__pycache__")
        shutil.copytree(ROOT, tree, ignore=ignore)  # pip builds in the tree; ours stays as it is
        run = subprocess.run(
            command, cwd=tree, env={**os.environ, **settings}, capture_output=True, text=True, check=False
        )
    print(run.stdout[-6000:], run.stderr[-2000:], sep="\n")
    record: Record = {
        "part": "install",
        "key": "pip install",
        "seconds": time.monotonic() - start,
        "rc": run.returncode,
    }
    if run.returncode:
        record["refused"] = f"pip install failed: {(run.stderr or run.stdout).strip().splitlines()[-1:]}"
    else:
        code = "import torch, lightkernels._C as c, lightkernels._cuda as d; print(c.isa(), d.__file__)"
        check = subprocess.run([sys.executable, "-P", "-c", code], cwd="/", capture_output=True, text=True, check=False)
        print(check.stdout, check.stderr)
        if check.returncode:
            record["refused"] = f"the modules do not load: {check.stderr.strip().splitlines()[-1:]}"
    yield record


OWN = ["python_tests/test_gpu.py", "python_tests/test_gpu_rsdc2d.py", "python_tests/test_gpu_mldn.py"]
IGNORED = [f"--ignore={path}" for path in OWN]
TESTS = {
    "gpu": [*OWN, "-m", "gpu"],
    "gpu, without the caching allocator": ["python_tests/test_gpu.py", "-m", "gpu", "-k", "parity or poison"],
    "generated": ["python_tests", "-m", "gpu", *IGNORED, "--backends", "triton,cuda"],
}


def tests(args: argparse.Namespace, done: set[str]) -> Iterator[Record]:
    parallel = ["-n", str(args.workers)] if has_module("xdist") else []
    for name, selection in TESTS.items():
        if name in done:
            continue
        extra = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if "without" in name else {}
        paths = [str(ROOT / s) if s.startswith("python_tests") else s for s in selection]
        paths = [s.replace("--ignore=", f"--ignore={ROOT}/") for s in paths]
        command = [sys.executable, "-P", "-m", "pytest", *paths, "-o", "pythonpath=", "-p", "no:cacheprovider", "-rfE"]
        command += ["--tb=short", "-o", "addopts=-q --strict-markers", *parallel]  # plugins only where there are any
        if args.dry_run:
            print("would run:", *extra, *command)
            continue
        start, last = time.monotonic(), "no output"
        with tempfile.TemporaryDirectory() as folder:
            run = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, **extra},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for line in run.stdout or ():  # at once, so that the log has them if the time ends
                print(line, end="", flush=True)
                last = line.strip() or last
            code = run.wait()
        yield {"part": "tests", "key": name, "summary": last, "rc": code, "seconds": time.monotonic() - start}


def sanitize(args: argparse.Namespace, done: set[str]) -> Iterator[Record]:
    """Small calls of every native kernel under compute-sanitizer, where the machine has it and its runtime lets it."""
    calls = [sys.executable, "-P", str(HERE / "gpu" / "sanitize.py")]
    for tool in ("memcheck", "racecheck"):
        if tool in done:
            continue
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *calls]
        record: Record = {"part": "sanitize", "key": tool}
        if args.dry_run:
            print("would run:", *command)
            continue
        if shutil.which(command[0]) is None:
            yield record | {"refused": "compute-sanitizer is not on this machine"}
            continue
        start = time.monotonic()
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        print(run.stdout[-4000:], run.stderr[-2000:])
        last = (run.stdout.strip().splitlines() or ["no output"])[-1]
        yield record | {"summary": last, "rc": run.returncode, "seconds": time.monotonic() - start}


def has_module(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


def ceilings(args: argparse.Namespace, done: set[str]) -> Iterator[Record]:
    from gpu.ceilings import records

    if not done:
        yield from records(device(args.dry_run))


def warm(args: argparse.Namespace, done: set[str]) -> Iterator[Record]:
    """This worker's share of the groups, in the order in which they will be timed."""
    from gpu.ops import warm as compile_group

    where = device(args.dry_run)
    share = wanted(args)[args.worker :: args.workers]
    for group in share:
        try:
            compile_group(group, where)
        except Exception as reason:
            text = f"{type(reason).__name__}: {reason}".splitlines()[0][:300]
            yield {"part": "warm", "key": group.key, "refused": text}


def ops(args: argparse.Namespace, done: set[str]) -> Iterator[Record]:
    from gpu.ops import measure_group

    where = device(args.dry_run)
    for group in wanted(args):
        if group.key not in done:
            yield measure_group(group, where)


def compile(args: argparse.Namespace, done: set[str]) -> Iterator[Record]:
    """torch.compile on the groups where it has something to fuse, the most telling first."""
    import torch
    from gpu.ops import measure_group

    where = device(args.dry_run)
    for group in wanted(args):
        if f"{group.variant} {group.kind}" in COMPILED and group.key not in done:
            torch._dynamo.reset()
            yield measure_group(group, where, compile=True)


def report(out: Path, dry: bool) -> None:
    from gpu import report as tables

    records = read(out / "gpu_results.jsonl")
    files = {"gpu.md": tables.markdown(records), "gpu.csv": tables.csv_text(records)}
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        if not tables.plot(records, str(Path(folder) / "gpu.png")):
            print("no plot: matplotlib is missing or nothing was timed")
        with tarfile.open(out / "gpu_suite.tar.gz", "w:gz") as archive:
            for path in [*sorted(Path(folder).iterdir()), out / "gpu_results.jsonl", out / "gpu_log.txt"]:
                if path.exists():
                    archive.add(path, arcname=f"gpu_suite/{path.name}")
    print("times are invented\n" if dry else "", tables.summary(records), sep="")


# The parent: one process a part, each with a deadline.


def child_environment(out: Path, dry: bool) -> dict[str, str]:
    """The installed package if there is one, else the source tree, which has the Triton kernels too."""
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('lightkernels') is None)"
    probe = subprocess.run([sys.executable, "-P", "-c", code], cwd="/", capture_output=True, check=False)
    path = [] if probe.returncode == 0 and not dry else [str(ROOT)]
    path += [p for p in [os.environ.get("PYTHONPATH")] if p]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1", "OUT": str(out)}


def run_part(part: str, args: argparse.Namespace, seconds: float) -> None:
    words = [a for a in sys.argv[1:] if a != "--dry-run"] + (["--dry-run"] if args.dry_run else [])
    command = [sys.executable, str(Path(__file__).resolve()), *words, "--child", part]
    count = args.workers if part == "warm" and not args.dry_run else 1
    log = args.out / "gpu_log.txt"
    env = child_environment(args.out, args.dry_run)
    with log.open("a", encoding="utf-8") as file:
        workers = [
            subprocess.Popen(
                [*command, "--worker", str(i), "--workers", str(count if part == "warm" else args.workers)],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,
            )
            for i in range(count)
        ]
        deadline = time.monotonic() + seconds
        for worker in workers:
            try:
                worker.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                stop(worker)
                print(f"  {part}: stopped at the end of its time", flush=True)
    codes = {w.returncode for w in workers}
    if codes - {0, -9}:
        tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-4:]
        print(f"  {part}: exit status {codes}: " + " | ".join(tail), flush=True)


def stop(worker: subprocess.Popen[bytes]) -> None:
    """The process and what it started; it is alone in its own session."""
    import signal

    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def run_child(args: argparse.Namespace) -> int:
    results = Results(args.out)
    parts = {
        "env": env,
        "install": install,
        "ceilings": ceilings,
        "tests": tests,
        "sanitize": sanitize,
        "warm": warm,
        "ops": ops,
    }
    parts["compile"] = compile
    for record in parts[args.child](args, results.done(args.child)):
        results.add(record)
        print(f"{record['part']}: {record['key']}", flush=True)
    return 0


def main() -> int:
    args = arguments()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.child:
        return run_child(args)
    start = time.monotonic()
    if args.resume:
        kept = read(args.resume)
        (args.out / "gpu_results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")
    chosen = args.part or list(PARTS)
    for part in [p for p in PARTS if p in chosen]:
        left = args.seconds - RESERVE - (time.monotonic() - start)
        later = 60 if "compile" in chosen and part == "ops" else 0
        share = max(0.0, min(left - later, PARTS[part] if len(chosen) > 1 else left))
        print(f"{part}: at most {share:.0f} s of {left:.0f}", flush=True)
        if share > 5:
            began = time.monotonic()
            run_part(part, args, share)
            print(f"  {time.monotonic() - began:.0f} s", flush=True)
    report(args.out, args.dry_run)
    print(f"{time.monotonic() - start:.0f} s; {args.out / 'gpu_suite.tar.gz'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

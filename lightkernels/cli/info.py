"""``lightkernels info``: everything one asks for in a bug report. A probe that fails says so and stops no other."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

VARIABLES = ("BACKEND", "CPU_ISA", "STRICT", "AUTOTUNE", "CACHE_DIR", "LOG", "DISABLE_NATIVE", "CUDA")
PACKAGES = ("triton", "numpy", "scikit-learn", "matplotlib", "rich", "typer")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
Found = dict[str, Any]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def versions() -> Found:
    import lightkernels

    found = {"lightkernels": lightkernels.__version__, "python": platform.python_version(), "torch": torch.__version__}
    return found | {package: _version(package) for package in PACKAGES}


def system() -> str:
    return platform.platform()


def cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _native(name: str) -> Any:
    from lightkernels._core import native

    module, reason = native.load(name)
    return module if module is not None else f"not loaded: {reason}"


def native_core() -> str:
    module = _native("_C")
    return module if isinstance(module, str) else str(module.__file__)


def native_cuda() -> str:
    module = _native("_cuda")
    return module if isinstance(module, str) else str(module.__file__)


def instruction_sets() -> Found:
    found: Found = {"torch": torch.backends.cpu.get_cpu_capability()}
    module = _native("_C")
    if isinstance(module, str):
        return found | {"lightkernels": module}
    for name, (built, supported) in module.isas().items():
        state = "in use" if name == module.isa() else "usable" if built and supported else ""
        found[name] = state or ", ".join(["built" if built else "not built", "" if supported else "not supported here"])
    return found


def threads() -> Found:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"torch": torch.get_num_threads(), "usable processors": usable, "processors": os.cpu_count()}


def openmp() -> Found:
    found: Found = {"torch": torch.backends.openmp.is_available()}
    module = _native("_C")
    if isinstance(module, str):
        return found | {"lightkernels": module}
    return found | {"lightkernels": bool(module.openmp), "largest team": module.omp_max_threads()}


def cuda() -> Found:
    found: Found = {"torch built for": torch.version.cuda or "no CUDA", "available": torch.cuda.is_available()}
    driver = getattr(torch._C, "_cuda_getDriverVersion", None)
    if driver is not None and found["available"]:
        found["driver"] = driver()
    if found["available"]:
        for i in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(i)
            found[f"device {i}"] = f"{torch.cuda.get_device_name(i)}, sm_{major}{minor}"
    return found


def _first_line(*command: str) -> str:
    program = shutil.which(command[0])
    if program is None:
        return "not found"
    run = subprocess.run([program, *command[1:]], capture_output=True, text=True, timeout=20, check=False)
    lines = [line.strip() for line in run.stdout.splitlines() if "release" in line or command[0] != "nvcc"]
    return f"{program}: {lines[0]}" if lines else f"{program}: says nothing, exit code {run.returncode}"


def compilers() -> Found:
    return {"nvcc": _first_line("nvcc", "--version"), "c++ (torch.compile)": _first_line("c++", "--version")}


def environment() -> Found:
    names = [f"LIGHTKERNELS_{name}" for name in VARIABLES] + ["OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"]
    return {name: os.environ[name] for name in names if name in os.environ}


def _examples() -> Iterator[tuple[str, Any]]:
    """The first case of every operator."""
    from lightkernels.cli.explain import operators

    for name in operators():
        yield name, importlib.import_module(f"lightkernels.ops.{name}.cases").CASES[0]


def backends() -> Found:
    """For one small call of every operator: the chosen backend, and every other one's reason."""
    from lightkernels import explain

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    found: Found = {}
    for name, case in _examples():
        rows = found[name] = []
        for device in devices:
            for dtype in DTYPES:
                for layout in ("nchw", "nhwc"):
                    sample = case.build(dtype=dtype, layout=layout, device=device)
                    why = explain(name, *sample.args, **sample.kwargs)
                    others = {n: reason or "could run" for n, reason in why.reasons.items() if n != why.chosen}
                    call = {"device": device, "dtype": str(dtype).removeprefix("torch."), "layout": layout}
                    rows.append({**call, "backend": why.chosen, "others": others})
    return found


PROBES: dict[str, Callable[[], Any]] = {
    "versions": versions,
    "system": system,
    "processor": cpu,
    "instruction sets": instruction_sets,
    "threads": threads,
    "OpenMP": openmp,
    "native core": native_core,
    "native CUDA": native_cuda,
    "CUDA": cuda,
    "compilers": compilers,
    "environment": environment,
    "backends": backends,
}


def collect() -> Found:
    """The result of every probe; of one that fails, ``{"failed": why}``."""
    found: Found = {}
    for name, probe in PROBES.items():
        try:
            found[name] = probe()
        except Exception as error:  # whatever a broken installation raises
            found[name] = {"failed": f"{type(error).__name__}: {error}"}
    return found


def text(found: Found) -> str:
    """What ``collect`` found, for reading."""
    lines: list[str] = []
    for name, value in found.items():
        if name == "backends" and isinstance(value, dict) and "failed" not in value:
            lines += ["", *_backend_lines(value)]
        elif isinstance(value, dict):
            parts = [f"{key} {_plain(item)}" for key, item in value.items()] or ["nothing set"]
            lines.append(_wrapped(name, parts))
        else:
            lines.append(_wrapped(name, [_plain(value)]))
    return "\n".join(lines)


def _plain(value: Any) -> str:
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


def _wrapped(name: str, parts: list[str], width: int = 110) -> str:
    lines = [f"{name:<18}"]
    for i, part in enumerate(parts):
        piece = part + (", " if i < len(parts) - 1 else "")
        if i and len(lines[-1]) + len(piece) > width:
            lines.append(" " * 18)
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def _backend_lines(found: Found) -> Iterator[str]:
    """One line a device and dtype; reasons that are the same for several calls once."""
    for op, rows in found.items():
        yield f"{op}: what would run"
        chosen: dict[tuple[str, str], list[str]] = {}
        reasons: dict[tuple[str, str], list[str]] = {}
        for row in rows:
            chosen.setdefault((row["device"], row["dtype"]), []).append(
                f"{row['layout']} {row['backend'] or 'nothing'}"
            )
            for other, reason in row["others"].items():
                reasons.setdefault((other, reason), []).append(f"{row['device']} {row['dtype']} {row['layout']}")
        for (device, dtype), layouts in chosen.items():
            yield f"  {device:<5} {dtype:<9} {', '.join(layouts)}"
        yield "  and why not another"
        for (other, reason), calls in reasons.items():
            where = "" if len(calls) == len(rows) else f" ({', '.join(calls)})"
            yield f"  {other:<11}{reason}{where}"

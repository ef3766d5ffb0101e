"""Where and on what a measurement ran: commit, versions, processor, instruction set, threads."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

# One instruction set for both sides. Every library reads its own variable, once, when it is loaded.
ISA_ENVIRONMENT = {
    "avx2": {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "LIGHTKERNELS_CPU_ISA": "avx2",
    },
    "avx512": {"LIGHTKERNELS_CPU_ISA": "avx512"},
    "auto": {},
}


def environment(isa: str, base: Mapping[str, str]) -> dict[str, str]:
    """``base`` with both sides held to instruction set ``isa``, and a folder for what torch.compile makes with it.

    The folder is not a nicety. Inductor's cache of graphs is not keyed by ATEN_CPU_CAPABILITY: code written for the
    8 lanes of AVX2 is found again by a process that compiles with AVX-512's flags, where it writes past its buffers.
    """
    env = {**base, **ISA_ENVIRONMENT[isa]}
    lanes = env.get("ATEN_CPU_CAPABILITY", isa)
    env.setdefault("TORCHINDUCTOR_CACHE_DIR", str(ROOT / "runs" / "inductor" / lanes))
    return env


def find_package() -> None:
    """Make ``import lightkernels`` work from a source tree; an installed package comes first."""
    try:
        import lightkernels  # noqa: F401
    except ModuleNotFoundError:
        sys.path.append(str(ROOT))


def commit() -> str:
    """The commit of the source tree, with ``+`` if files that are tracked were changed; 'unknown' without git."""
    try:
        git = ["git", "-C", str(ROOT)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head[:12] + ("+" if changed else "")


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    facts: dict[str, str] = {}
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            name, _, text = line.partition(":")
            facts.setdefault(name.strip(), text.strip())
    if "model name" not in facts:
        return platform.processor() or platform.machine()
    return f"{facts['model name']} (family {facts.get('cpu family', '?')}, model {facts.get('model', '?')})"


def describe() -> dict[str, Any]:
    import torch

    import lightkernels
    from lightkernels._core import native

    core, reason = native.load("_C")
    return {
        "commit": commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "lightkernels": lightkernels.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": core.isa() if core is not None else f"no native core: {reason}",
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "onednn_max_isa": os.environ.get("ONEDNN_MAX_CPU_ISA", "default"),
    }


def load() -> float:
    """The one-minute load average, or 0 where there is none: above the number of cores, times mean little."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0

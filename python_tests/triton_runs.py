"""Runs of the Triton interpreter, shared by pytest's processes: whichever asks first runs a batch of cases."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

import lightkernels

HERE = Path(__file__).resolve().parent
BATCHES = 4


def environment() -> dict[str, str]:
    """This process's, in which a child finds the same lightkernels."""
    package = str(Path(lightkernels.__file__).parents[1])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}


def results(script: str, names: Iterable[str], factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """What ``script`` prints about a case, by name."""
    base = factory.getbasetemp()
    folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    batch_of = {name: i % BATCHES for i, name in enumerate(names)}

    def result(name: str) -> dict[str, Any]:
        batch = batch_of[name]
        path = folder / f"{script}-{batch}.jsonl"
        with (folder / f"{script}-{batch}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                path.write_text(_run(script, [other for other, number in batch_of.items() if number == batch]))
        return next(line for line in map(json.loads, path.read_text().splitlines()) if line["case"] == name)

    return result


def _run(script: str, names: list[str]) -> str:
    env = {**environment(), "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / script), *names]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout

"""Runs the command in a process of its own, with packages hidden from it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import lightkernels

PACKAGE_ROOT = str(Path(lightkernels.__file__).parent.parent)

_HIDE = """
import sys
hidden = set({hidden!r})
class Filtered:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else self.finder.find_spec(name, path, target)
sys.meta_path[:] = map(Filtered, sys.meta_path)
from lightkernels.cli import main
sys.exit(main({args!r}))
"""


def environment(**variables: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": PACKAGE_ROOT, "OMP_NUM_THREADS": "1", "COLUMNS": "120"} | variables


def command(*args: str, hidden: Sequence[str] = (), **variables: str) -> subprocess.CompletedProcess[str]:
    """``lightkernels ARGS``; the packages ``hidden`` cannot be imported there."""
    start = ["-c", _HIDE.format(hidden=list(hidden), args=list(args))] if hidden else ["-m", "lightkernels", *args]
    # In the folder of the package under test: the current folder comes first on the path, and may hold another copy.
    options = {"cwd": PACKAGE_ROOT, "env": environment(**variables), "timeout": 300}
    return subprocess.run([sys.executable, *start], capture_output=True, text=True, check=False, **options)

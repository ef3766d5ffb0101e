"""The Triton kernels' arithmetic and addresses, through Triton's interpreter in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lightkernels

pytest.importorskip("triton")

from triton_interpreter_cases import CASES

pytestmark = pytest.mark.interpreter
HERE = Path(__file__).resolve().parent


def environment() -> dict[str, str]:
    """This process's, in which a child finds the same lightkernels."""
    package = str(Path(lightkernels.__file__).parents[1])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, Any]]:
    env = {**environment(), "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    script = HERE / "triton_interpreter_cases.py"
    done = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return {line["case"]: line for line in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", CASES)
def test_case(results: dict[str, dict[str, Any]], name: str) -> None:
    result = results[name]
    assert "exception" not in result, result["exception"]
    for kind in CASES[name].passes:
        seen = result[kind]
        assert seen["error"] <= seen["bound"], f"{kind}: error {seen['error']:.3g}, bound {seen['bound']:.3g}"
        assert seen["kernels"] == expected_kernels(name, kind)
        assert seen["margins"], f"{kind} wrote outside its output"
        assert seen["same"], f"{kind} differs from run to run"
        assert seen["layout"], f"{kind}: wrong shape, dtype or strides"


def expected_kernels(name: str, kind: str) -> list[str]:
    if name.startswith("empty"):
        return []
    path = name.split("-")[0]
    if kind == "bwd_w":
        return [{"dot": "grad_rows", "plane": "grad_rows", "table": "grad_table"}.get(path, "grad_taps")]
    return [{"dot": "conv_rows", "plane": "conv_plane", "table": "conv_table"}.get(path, "conv_taps")]


def test_nonfinite_reaches_only_its_taps(results: dict[str, dict[str, Any]]) -> None:
    assert results["nonfinite"].get("bad") == [], results["nonfinite"]


@pytest.mark.parametrize(
    ("before", "reason"),
    [("", "interpreter is off"), ("sys.modules['triton'] = None", "Triton is not installed")],
)
def test_says_why_not(before: str, reason: str) -> None:
    code = f"""
import sys
{before}
import torch, lightkernels
assert "lightkernels.ops.multi_dwconv2d.triton_kernels" not in sys.modules
x, w = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 3, 3)
assert torch.equal(lightkernels.multi_dwconv2d(x, [w]), x)
try:
    lightkernels.multi_dwconv2d(x, [w], backend="triton")
except lightkernels.BackendUnavailable as error:
    print(error)
"""
    env = environment()
    env.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert reason in done.stdout

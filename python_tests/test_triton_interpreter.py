"""The Triton kernels' arithmetic and addresses, through Triton's interpreter in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("triton")

from triton_interpreter_cases import CASES
from triton_runs import environment, results

pytestmark = pytest.mark.interpreter


@pytest.fixture(scope="module")
def result_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    return results("triton_interpreter_cases.py", [*CASES, "nonfinite"], tmp_path_factory)


@pytest.mark.parametrize("name", CASES)
def test_case(result_of: Callable[[str], dict[str, Any]], name: str) -> None:
    result = result_of(name)
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


def test_nonfinite_reaches_only_its_taps(result_of: Callable[[str], dict[str, Any]]) -> None:
    assert result_of("nonfinite").get("bad") == [], result_of("nonfinite")


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

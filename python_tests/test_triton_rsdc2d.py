"""rsdc2d's Triton kernels through the interpreter, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("triton")

from triton_rsdc2d_cases import CASES
from triton_runs import environment, results

pytestmark = pytest.mark.interpreter


@pytest.fixture(scope="module")
def result_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    return results("triton_rsdc2d_cases.py", [*CASES, "nonfinite"], tmp_path_factory)


@pytest.mark.parametrize("name", CASES)
def test_case(result_of: Callable[[str], dict[str, Any]], name: str) -> None:
    result = result_of(name)
    assert "exception" not in result, result["exception"]
    way = "direct" if name.startswith("direct") else "dot"
    for kind in ("fwd", "bwd_x", "bwd_w"):
        seen = result[kind]
        assert seen["error"] <= seen["bound"], f"{kind}: error {seen['error']:.3g}, bound {seen['bound']:.3g}"
        kernel = f"grad_{way}" if kind == "bwd_w" else f"conv_{way}"
        assert seen["kernels"] == ([] if name.startswith("empty") else [kernel])
        assert seen["margins"], f"{kind} wrote outside its output"
        assert seen["same"], f"{kind} differs from run to run"
        assert seen["layout"], f"{kind}: wrong shape, dtype or strides"


def test_nonfinite_reaches_only_its_taps(result_of: Callable[[str], dict[str, Any]]) -> None:
    assert result_of("nonfinite").get("bad") == [], result_of("nonfinite")


def test_says_why_not_and_what_it_copies() -> None:
    code = """
import torch, lightkernels
from lightkernels.ops.rsdc2d import triton
from lightkernels import explain, use_backend
def told(shape, filters, sets, groups=1):
    x, w = torch.zeros(shape), torch.zeros(filters, shape[1] // groups, 9)
    taps = torch.arange(9).repeat(sets, 1)
    with use_backend("triton"):
        e = explain("rsdc2d", x, w, taps, kernel_size=5, groups=groups)
    print(e.reasons["triton"], e.copies, e.config, sep="|")
told((1, 32, 4, 4), 32, 32)
told((1, 32, 4, 4), 32, 1)
told((1, 32, 4, 4), 8, 8, 8)
"""
    env = {**environment(), "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    dense, shared, tiny = (line.split("|") for line in done.stdout.splitlines())
    assert "a masked dense convolution" in dense[0]
    assert shared[0] == "None" and "channels_last" in shared[1] and "bwd_w on tensor cores" in shared[2]
    assert tiny[0] == tiny[1] == "None" and "element-wise" in tiny[2]

"""condensed_conv2d's Triton kernels through the interpreter, in a process of its own, and compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from triton_condensed_cases import RUNS
from triton_runs import results

from lightkernels._core.spec import TensorMeta, dense_stride
from lightkernels._core.triton_static import compile_for
from lightkernels.ops.condensed_conv2d import triton
from lightkernels.ops.condensed_conv2d.spec import Inputs, Spec
from lightkernels.ops.condensed_conv2d.triton_launch import recorded

SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
PRODUCTS = ("forward", "grad_picked", "grad_weight")


@pytest.fixture(scope="module")
def result_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    return results("triton_condensed_cases.py", RUNS, tmp_path_factory)


@pytest.mark.interpreter
@pytest.mark.parametrize("name", RUNS)
def test_case(result_of: Callable[[str], dict[str, Any]], name: str) -> None:
    result = result_of(name)
    assert "exception" not in result, result["exception"]
    assert set(result["errors"]) >= {"y"}
    for what, (error, bound) in result["errors"].items():
        assert error <= bound, f"{what}: error {error:.3g}, bound {bound:.3g}"
    assert result["kernels"] == ([] if name == "empty" else sorted((*PRODUCTS, "collect", "sum_parts")))
    assert result["margins"], "wrote outside"
    assert result["same"], "differs from run to run"


def call(dtype: torch.dtype, layout: str, shape: tuple[int, int, int, int] = (128, 240, 16, 16)) -> Spec:
    """Four groups, a quarter of the channels for each, 64 filters."""

    def meta(size: tuple[int, ...], of: torch.dtype) -> TensorMeta:
        return TensorMeta(size, dense_stride(size, layout) if len(size) == 4 else (1,) * len(size), of, device)

    device, picked = torch.device("meta"), shape[1] // 4
    norm = meta((4 * picked,), torch.float64 if dtype is torch.float64 else torch.float32)
    return Spec.of(
        Inputs(meta(shape, dtype), meta((64, picked), dtype), norm, norm, meta((4, picked), torch.int64)), "relu"
    )


@pytest.mark.parametrize(
    ("dtype", "layout", "capability", "kernels"),
    [
        (torch.float32, "nchw", 80, ("forward",)),
        (torch.bfloat16, "nhwc", 90, (*PRODUCTS, "collect", "sum_parts")),
        (torch.bfloat16, "nhwc", 100, ("forward", "grad_picked")),
    ],
)
def test_fits_the_machine(dtype: torch.dtype, layout: str, capability: int, kernels: tuple[str, ...]) -> None:
    spec = call(dtype, layout)
    forward, backward = recorded(spec, "fwd"), recorded(spec, "bwd")
    assert [launch.kernel.__name__ for launch in forward] == ["forward"]
    assert {launch.kernel.__name__ for launch in backward} == {"grad_picked", "collect", "grad_weight", "sum_parts"}
    found = {launch.kernel.__name__: launch for launch in forward + backward}
    assert all(0 < launch.programs < 2**31 for launch in found.values())
    for name in kernels:
        code = compile_for(found[name], capability)
        assert code.spills == 0, f"{name} spills"
        assert code.registers <= 255
        assert code.shared <= SHARED[capability] // 2
        if name in PRODUCTS:
            assert sum(code.opcodes[op] for op in ("HMMA", "HGMMA", "UTCHMMA")) > 0


def test_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "unsuited", lambda device: None)
    assert triton.why_not(call(torch.bfloat16, "nhwc")) is None
    assert "pixels" in str(triton.why_not(call(torch.bfloat16, "nhwc", (2**16, 8, 2**8, 2**8))))

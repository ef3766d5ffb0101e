"""mldn_block's Triton kernels through the interpreter, in a process of its own, and compiled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from triton_mldn_cases import BACKWARD, COMMON, RUNS, SECOND
from triton_runs import results

from lightkernels._core.spec import TensorMeta, dense_stride
from lightkernels._core.triton_static import compile_for
from lightkernels.ops.mldn_block import triton
from lightkernels.ops.mldn_block.spec import Inputs, Spec
from lightkernels.ops.mldn_block.triton_launch import recorded

SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}


FORWARD = ("pointwise", "spatial", "finish", "spread")
PRODUCTS = ("pointwise", "spatial", "spatial_back", "spatial_grad", "pointwise_back", "pointwise_grad")


@pytest.fixture(scope="module")
def result_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    return results("triton_mldn_cases.py", RUNS, tmp_path_factory)


@pytest.mark.interpreter
@pytest.mark.parametrize("name", RUNS)
def test_case(result_of: Callable[[str], dict[str, Any]], name: str) -> None:
    result = result_of(name)
    assert "exception" not in result, result["exception"]
    assert "y" in result["errors"]
    for what, (error, bound) in result["errors"].items():
        assert error <= bound, f"{what}: error {error:.3g}, bound {bound:.3g}"
    due = ["spatial", "spread", *(["finish"] if result["statistics"] else [])]
    due += result["forms"] if "condensed" in result["forms"] else ["pointwise", *result["forms"]]
    if result["backward"]:
        own = [*COMMON, *SECOND[: 4 if result["statistics"] else 3]] if "reactivate" in result["forms"] else BACKWARD
        due += [*own, "sum_parts"]
    assert result["kernels"] == ([] if name.startswith("empty") else sorted(due))
    assert result["backward"] == ("gradient of weight3" in result["errors"])
    assert result["margins"], "wrote outside"
    assert result["same"], "differs from run to run, or in evaluation"


def block(dtype: torch.dtype, layout: str, *, version: int = 1, running: bool = False, index: int = 0) -> Spec:
    """128 images, 16 channels, two layers of two paths of twelve; RSDC with a set a group."""
    shape, device = (128, 16, 32, 32), torch.device("meta")

    def meta(size: tuple[int, ...], of: torch.dtype = dtype) -> TensorMeta:
        return TensorMeta(size, dense_stride(size, layout) if len(size) == 4 else (1,) * len(size), of, device)

    columns, mids, outs, wide = 2 * (8 + 20), 2 * 2 * 48, 2 * 2 * 12, torch.float32
    given: dict[str, Any] = {"weight1": meta((48 * columns,)), "weight3": meta((outs * 12 * 9,))}
    given |= {"affine1": meta((2, columns), wide), "affine2": meta((2, mids), wide)}
    given |= {"taps": meta((2 * 2, 9), torch.int64)}
    if version == 2:
        given |= {"weight_sfr": meta((columns * 12,)), "affine3": meta((2, outs), wide)}
    if running:
        given |= {"running1": given["affine1"], "running2": given["affine2"]}
    values = (2, 2, 24, 4, 4, version, "xor1", 5, 1e-5, 0.0, index, 1, not running)
    return Spec.of(Inputs(x=meta(shape), **given), *values)


@pytest.mark.parametrize(
    ("dtype", "layout", "capability", "kernels"),
    [
        (torch.float32, "nchw", 80, PRODUCTS[:3]),
        (torch.bfloat16, "nhwc", 90, FORWARD + BACKWARD),
        (torch.bfloat16, "nhwc", 100, PRODUCTS[:2] + PRODUCTS[4:]),
    ],
)
def test_fits_the_machine(dtype: torch.dtype, layout: str, capability: int, kernels: tuple[str, ...]) -> None:
    spec = block(dtype, layout)
    launches = recorded(spec) + recorded(spec, "bwd")
    found = {launch.kernel.__name__: launch for launch in launches}
    assert set(found) == {*FORWARD, *BACKWARD, "sum_parts"}
    assert all(0 < launch.programs < 2**31 for launch in launches)
    for name in kernels:
        code = compile_for(found[name], capability)
        assert code.spills == 0, f"{name} spills"
        assert code.registers <= 255
        assert code.shared <= SHARED[capability] // 2
        if name in PRODUCTS:
            assert sum(code.opcodes[op] for op in ("HMMA", "HGMMA", "UTCHMMA")) > 0


def test_second_version_fits_the_machine() -> None:
    spec = block(torch.bfloat16, "nhwc", version=2)
    found = {launch.kernel.__name__: launch for launch in recorded(spec) + recorded(spec, "bwd")}
    assert set(found) == {*FORWARD, "reactivate", *COMMON, *SECOND, "sum_parts"}
    for name in ("reactivate", SECOND[0]):
        code = compile_for(found[name], 90)
        assert code.spills == 0
        assert code.opcodes["HMMA"] + code.opcodes["HGMMA"] > 0


def test_two_kernels_a_layer_in_evaluation() -> None:
    names = [launch.kernel.__name__ for launch in recorded(block(torch.bfloat16, "nhwc", running=True))]
    assert names == ["spread", "pointwise", "spatial", "pointwise", "spatial"]


def test_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "unsuited", lambda device: None)
    for version in (1, 2):
        assert triton.why_not(block(torch.bfloat16, "nhwc", version=version)) is None
    many = dataclasses.replace(block(torch.bfloat16, "nhwc"), n=2**21)
    assert "pixels" in str(triton.why_not(many))

"""The Triton kernels, compiled for every CUDA target without a device: registers, spills, shared memory, instructions.

Lane-instructions an output: the instructions that the launch's warps issue (those outside the loop, and the loop's body
times its trips), times 32 lanes, over the outputs of the launch. All branches count as taken.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import pytest
import torch

pytest.importorskip("triton")

from lightkernels._core import triton_host
from lightkernels._core.spec import TensorMeta, dense_stride
from lightkernels._core.triton_static import Code, Launch, compile_for
from lightkernels.ops.multi_dwconv2d.op import OP
from lightkernels.ops.multi_dwconv2d.triton_launch import recorded
from lightkernels.ops.rsdc2d import triton_config
from lightkernels.ops.rsdc2d.op import OP as RSDC
from lightkernels.ops.rsdc2d.triton_launch import recorded as rsdc_recorded

SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}


class Case(NamedTuple):
    kind: str
    kernels: tuple[int, ...]
    shape: tuple[int, int, int, int] = (64, 32, 32, 32)
    dtype: torch.dtype = torch.bfloat16
    combine: str = "concat"
    layout: str = "nchw"
    stride: tuple[int, int] = (1, 1)
    kernel: str = ""
    lanes: float | None = None  # bound on sm_90


# Every case is compiled for sm_90, and those whose names these are for the others too.
EVERYWHERE = ("7x7", "concat", "add", "plane-concat", "concat-dw", "fp32-dw", "nhwc-fp32")
CASES = {
    "7x7": Case("fwd", (7,), kernel="conv_rows", lanes=25),
    "5x5-fp16": Case("fwd", (5,), dtype=torch.float16, kernel="conv_rows", lanes=20),
    "concat": Case("fwd", (3, 5, 7), kernel="conv_rows", lanes=15),
    "concat-56": Case("fwd", (3, 5, 7), (8, 96, 56, 56), kernel="conv_rows", lanes=25),
    "add": Case("fwd", (3, 5, 7), combine="add", kernel="conv_rows", lanes=30),
    "stride2": Case("fwd", (3, 5, 7), (8, 96, 56, 56), stride=(2, 2), kernel="conv_rows", lanes=40),
    "7x7-dx": Case("bwd_x", (7,), kernel="conv_rows", lanes=25),
    "concat-dx": Case("bwd_x", (3, 5, 7), kernel="conv_rows", lanes=45),
    "plane": Case("fwd", (7,), (32, 960, 7, 7), kernel="conv_plane", lanes=45),
    "plane-concat": Case("fwd", (3, 5, 7), (32, 960, 7, 7), kernel="conv_plane", lanes=45),
    "plane-dx": Case("bwd_x", (7,), (32, 960, 7, 7), kernel="conv_plane", lanes=45),
    "7x7-dw": Case("bwd_w", (7,), kernel="grad_rows", lanes=40),
    "concat-dw": Case("bwd_w", (3, 5, 7), (64, 64, 16, 16), kernel="grad_rows", lanes=25),
    "7x7-dw-56": Case("bwd_w", (7,), (8, 96, 56, 56), kernel="grad_rows", lanes=60),
    "fp32": Case("fwd", (3, 5), dtype=torch.float32, kernel="conv_taps"),
    "fp32-dx": Case("bwd_x", (3,), dtype=torch.float32, stride=(1, 2), kernel="conv_taps"),
    "fp32-dw": Case("bwd_w", (5,), dtype=torch.float32, kernel="grad_taps"),
    "fp64": Case("fwd", (5,), dtype=torch.float64, combine="add", kernel="conv_taps"),
    "nhwc": Case("fwd", (3, 5, 7), (8, 64, 32, 32), layout="nhwc", kernel="conv_taps"),
    "nhwc-fp32": Case("fwd", (3,), (8, 64, 32, 32), dtype=torch.float32, layout="nhwc", kernel="conv_taps"),
    "nhwc-dw": Case("bwd_w", (5,), (8, 64, 32, 32), layout="nhwc", kernel="grad_taps"),
    "table": Case("fwd", (13,), dtype=torch.float32, kernel="conv_table"),
    "table-dw": Case("bwd_w", (13,), dtype=torch.float32, kernel="grad_table"),
}


@functools.cache
def launches(name: str) -> tuple[tuple[Launch, ...], int]:
    case = CASES[name]
    x = TensorMeta(case.shape, dense_stride(case.shape, case.layout), case.dtype, torch.device("meta"))
    channels, dilations = [case.shape[1]] * len(case.kernels), [1] * len(case.kernels)
    args: Any = (list(case.kernels), channels, list(case.stride), dilations, case.combine, False)
    spec = OP.spec_of(x, None, None, args)
    out = spec.x_shape if case.kind == "bwd_x" else spec.y_shape
    return tuple(recorded(spec, case.kind)), out[0] * out[1] * out[2] * out[3]


_compiled: dict[tuple[Any, ...], Code] = {}


def compiled(launch: Launch, capability: int) -> Code:
    constants = tuple((k, v) for k, v in launch.arguments.items() if not isinstance(v, torch.Tensor))
    key = (launch.kernel.__name__, constants, capability)
    if key not in _compiled:
        _compiled[key] = compile_for(launch, capability)
    return _compiled[key]


@pytest.mark.parametrize(
    ("name", "capability"), [(name, 90) for name in CASES] + [(name, sm) for name in EVERYWHERE for sm in (80, 100)]
)
def test_fits_the_machine(name: str, capability: int) -> None:
    found, _ = launches(name)
    assert CASES[name].kernel in {launch.kernel.__name__ for launch in found}
    for launch in found:
        code = compiled(launch, capability)
        where = f"{launch.kernel.__name__} for sm_{capability}"
        assert code.spills == 0, f"{where} spills"
        assert code.registers <= 255, where
        assert code.shared <= SHARED[capability] // 2, f"{where}: {code.shared} bytes leave room for one block only"


class Rsdc(NamedTuple):
    kind: str
    shape: tuple[int, int, int, int] = (256, 64, 56, 56)
    filters: int = 64
    dtype: torch.dtype = torch.bfloat16
    layout: str = "nhwc"
    scope: str = "layer"
    groups: int = 1
    stride: int = 1
    tf32: bool = True
    kernel: str = "conv_dot"


# name: case, and whether it is compiled for sm_80 and sm_100 too; sm_90 always.
RSDC_CASES: dict[str, tuple[Rsdc, bool]] = {
    "64": (Rsdc("fwd"), False),
    "64-dx": (Rsdc("bwd_x"), False),
    "64-dw": (Rsdc("bwd_w", kernel="grad_dot"), False),
    "128": (Rsdc("fwd", (256, 128, 28, 28), 128), True),
    "128-stride-dx": (Rsdc("bwd_x", (64, 128, 28, 28), 128, torch.float16, stride=2), False),
    "128-dw": (Rsdc("bwd_w", (256, 128, 28, 28), 128, kernel="grad_dot"), True),
    "176-nchw": (Rsdc("fwd", (128, 176, 16, 16), 176, layout="nchw"), False),
    "512-few": (Rsdc("fwd", (2, 512, 7, 7), 512), False),
    "groups": (Rsdc("fwd", (64, 256, 28, 28), 256, scope="group", groups=4), False),
    "16": (Rsdc("fwd", (128, 16, 32, 32), 16), False),
    "3": (Rsdc("fwd", (64, 3, 32, 32), layout="nchw"), False),
    "tf32": (Rsdc("fwd", dtype=torch.float32), False),
    "ieee": (Rsdc("fwd", dtype=torch.float32, tf32=False), False),
    "ieee-dw": (Rsdc("bwd_w", dtype=torch.float32, tf32=False, kernel="grad_dot"), False),
    "fp64": (Rsdc("fwd", dtype=torch.float64), False),
    "fp64-dw": (Rsdc("bwd_w", dtype=torch.float64, kernel="grad_dot"), False),
    "mldn": (Rsdc("fwd", (64, 32, 32, 32), 8, scope="filter", groups=8, kernel="conv_direct"), True),
    "mldn-dx": (Rsdc("bwd_x", (64, 32, 32, 32), 8, scope="filter", groups=8, kernel="conv_direct"), False),
    "mldn-dw": (Rsdc("bwd_w", (64, 32, 32, 32), 8, scope="filter", groups=8, kernel="grad_direct"), True),
    "depthwise-nchw": (
        Rsdc("fwd", (64, 64, 32, 32), 64, layout="nchw", scope="filter", groups=64, kernel="conv_direct"),
        False,
    ),
}
HELPERS = ("64-dw", "128-stride-dx")  # whose small kernels are compiled too
WARPGROUP = ("64", "64-dx", "64-dw", "128", "128-stride-dx", "128-dw", "176-nchw", "512-few", "groups")


def rsdc_launches(name: str, capability: int = 90) -> list[Launch]:
    case, _ = RSDC_CASES[name]
    x = TensorMeta(case.shape, dense_stride(case.shape, case.layout), case.dtype, torch.device("meta"))
    sets = {"layer": 1, "group": case.groups, "filter": case.filters}[case.scope]
    taps = torch.empty((sets, 9), dtype=torch.int64, device="meta")
    args: Any = (taps, case.filters, 5, [case.stride] * 2, [2, 2], [1, 1], case.groups)
    spec = RSDC.spec_of(x, None, None, args)
    with pytest.MonkeyPatch.context() as patch, torch.backends.cudnn.flags(enabled=True, allow_tf32=case.tf32):
        patch.setattr(triton_config, "generation", lambda spec: capability // 10)
        return list(rsdc_recorded(spec, case.kind))


@pytest.mark.parametrize(
    ("name", "capability"),
    [(name, sm) for name, (_, every) in RSDC_CASES.items() for sm in ((80, 90, 100) if every else (90,))],
)
def test_rsdc2d_fits_the_machine(name: str, capability: int) -> None:
    case, found = RSDC_CASES[name][0], rsdc_launches(name, capability)
    assert case.kernel in {launch.kernel.__name__ for launch in found}
    for launch in found:
        assert 0 < launch.programs < 2**31
        if launch.kernel.__name__ != case.kernel and name not in HELPERS:
            continue
        code = compiled(launch, capability)
        where = f"{launch.kernel.__name__} for sm_{capability}"
        assert code.spills == 0, f"{where} spills"
        assert code.registers <= 255, where
        assert code.shared <= SHARED[capability] // 2, f"{where}: {code.shared} bytes leave room for one block only"


@pytest.mark.parametrize("name", WARPGROUP)
def test_rsdc2d_multiplies_by_warpgroups(name: str) -> None:
    """Hopper's full rate needs wgmma, fed by asynchronous copies."""
    (launch,) = [launch for launch in rsdc_launches(name) if launch.kernel.__name__ == RSDC_CASES[name][0].kernel]
    opcodes = compiled(launch, 90).opcodes
    assert opcodes["HGMMA"] >= 4 and opcodes["HMMA"] == 0
    assert opcodes["LDGSTS"] >= 8


def test_rsdc2d_precision_of_float32_is_pytorch_s() -> None:
    """TF32 products where cuDNN may use them, else true float32; by the older flag and by the newer."""
    for name, tensor_cores in (("tf32", True), ("ieee", False)):
        (launch,) = [launch for launch in rsdc_launches(name) if launch.kernel.__name__ == "conv_dot"]
        opcodes = compiled(launch, 90).opcodes
        assert (opcodes["HGMMA"] + opcodes["HMMA"] > 0) is tensor_cores
        assert (opcodes["FFMA"] > 100) is not tensor_cores
    convolutions = torch.backends.cudnn.conv
    before = convolutions.fp32_precision
    try:
        for value in ("ieee", "tf32"):
            convolutions.fp32_precision = value
            assert triton_host.dot_mode(torch.float32) == value
    finally:
        convolutions.fp32_precision = before


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.lanes])
def test_instructions_an_output(name: str) -> None:
    case, (found, outputs) = CASES[name], launches(name)
    assert case.lanes is not None and case.lanes <= 60
    main = [launch for launch in found if launch.kernel.__name__ == case.kernel]
    lanes = sum(compiled(launch, 90).lane_instructions(launch, outputs) for launch in main)
    assert lanes <= case.lanes
    assert all(compiled(launch, 90).opcodes["HMMA"] for launch in main)


def test_merged_add_takes_one_matrix_more_a_shared_row() -> None:
    """3+5+7 merged: 7 rows, of which 5 are sums and take a trailing part: 12 products, not the 15 of concat."""
    products = {name: compiled(launches(name)[0][-1], 90).opcodes["HMMA"] for name in ("7x7", "add", "concat")}
    assert products["add"] * 7 == products["7x7"] * 12
    assert products["concat"] * 7 == products["7x7"] * 15


def test_grid_stays_in_one_dimension() -> None:
    for name in CASES:
        for launch in launches(name)[0]:
            assert 0 < launch.programs < 2**31

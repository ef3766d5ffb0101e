"""multi_dwconv2d's native CUDA kernels without a GPU: the very kernels and launchers, lane by lane on the CPU."""

import csv
import mmap
import re

import cuda_host
import pytest
import torch

from checks import parity
from checks.target import Target
from lightkernels import exact_nonfinite, explain, multi_dwconv2d
from lightkernels._core import cuda_host as core
from lightkernels.testing import assert_same_bits

if cuda_host.compiler() is None:
    pytest.skip("needs a C++ compiler", allow_module_level=True)

TARGET = Target("lightkernels.ops.multi_dwconv2d", "cuda")
NAMES = [c.name for c in TARGET.cases.CASES if not {"bench", "bulk"} & c.tags]
STATIC = cuda_host.CSRC.parent / "benchmarks" / "results" / "cuda_static.csv"
STRUCT = re.compile(
    r"^struct (\w+)(?: : [\w<>, ]+)? \{\n(?:#if.*\n|  using .*\n)*  static constexpr int k(?:Threads|Blocks)", re.M
)
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


@pytest.fixture
def module(tmp_path_factory):
    with cuda_host.device(cuda_host.Module(cuda_host.library(tmp_path_factory))) as module:
        yield module


def forms(name):
    """Every case: fp32 or fp64 and a 16-bit type in nchw, which have kernels of their own, and one type in nhwc."""
    i = NAMES.index(name)
    yield "nchw", (torch.float32, torch.float64)[i % 5 == 4]
    yield "nchw", (torch.bfloat16, torch.float16)[i % 2]
    yield "nhwc", (torch.float32, torch.bfloat16, torch.float16, torch.float64)[i % 4]


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients(module, name, seed):
    """Against float64 truth, by the rule of the whole suite."""
    for layout, dtype in forms(name):
        parity.outputs_and_gradients(TARGET, TARGET.case(name), dtype, layout, seed)


# name: x's shape, kernels, dtype, layout, keyword arguments, and what runs the forward and both gradients
CALLS = {
    "concat": ((3, 2, 9, 20), (3, 5, 7), "bfloat16", "nchw", {}, ["mma_conv", "mma_back", *["mma_grad"] * 3]),
    "add": ((2, 2, 7, 7), (3, 5, 7), "float16", "nchw", {"combine": "add"}, ["mma_conv", "mma_conv", "mma_grad"]),
    "one row": ((1, 2, 1, 40), (5,), "bfloat16", "nchw", {}, ["mma_conv", "mma_conv", "mma_grad"]),
    "wide": ((1, 2, 70, 37), (7,), "bfloat16", "nchw", {}, ["mma_conv", "mma_conv", "mma_grad"]),
    "cumulative": ((2, 2, 6, 9), (3, 5), "bfloat16", "nchw", {"combine": "cumulative"},
                   ["mma_conv", "tile_conv", *["tile_grad"] * 2]),
    "fp32": ((5, 2, 18, 35), (3, 5, 7), "float32", "nchw", {}, ["tile_conv", "tile_conv", *["tile_grad"] * 3]),
    "fp32 stride 2": ((2, 2, 19, 36), (3, 7), "float32", "nchw", {"stride": 2},
                      ["tile_conv", "generic_bwd_x", *["tile_grad"] * 2]),
    "nhwc": ((2, 35, 9, 21), (5, 7), "bfloat16", "nhwc", {}, ["tile_conv", "tile_conv", *["tile_grad"] * 2]),
    "nhwc stride 2": ((2, 3, 9, 9), (5,), "float16", "nhwc", {"stride": 2},
                      ["generic_fwd", "generic_bwd_x", "generic_bwd_w"]),
    "dilated": ((2, 3, 9, 9), (3, 3), "float32", "nchw", {"dilations": (1, 2)},
                ["generic_fwd", "generic_bwd_x", "generic_bwd_w"]),
    "fp64": ((2, 3, 9, 9), (3,), "float64", "nhwc", {}, ["generic_fwd", "generic_bwd_x", "generic_bwd_w"]),
}  # fmt: skip


def tensors(name):
    shape, kernels, dtype, layout, kwargs, _ = CALLS[name]
    dtype = getattr(torch, dtype)
    x = torch.randn(shape).to(dtype).contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    weights = [torch.randn(shape[1], 1, k, k).to(dtype).requires_grad_() for k in kernels]
    return x, weights, kwargs


def run(name, x, weights, kwargs):
    y = multi_dwconv2d(x, weights, **kwargs, backend="cuda")
    return [y.detach(), *torch.autograd.grad(y, [x, *weights], torch.ones_like(y) / 4)]


@pytest.mark.parametrize("name", CALLS)
def test_what_runs_and_that_no_barrier_is_missing(module, name):
    """The kernels, and the same bits whichever lanes go first: what one lane hands another is guarded by barriers."""
    x, weights, kwargs = tensors(name)
    first = run(name, x, weights, kwargs)
    assert [launch.kernel for launch in module.launches] == [*CALLS[name][-1], "sum_parts"]
    module.reverse = True
    for i, (a, b) in enumerate(zip(run(name, x, weights, kwargs), first, strict=True)):
        assert_same_bits(a, b, f"result {i}")


@pytest.mark.parametrize(("name", "dtype"), [("concat", torch.bfloat16), ("add", torch.float32)])
def test_reads_stay_inside(module, name, dtype, seed):
    for layout in LAYOUTS:
        parity.inputs_between_nans(TARGET, TARGET.case(name), dtype, layout, seed)


@pytest.mark.parametrize("name", ["concat", "add", "columns_33"])
def test_non_finite_pixels_where_exactness_is_asked_for(module, name, seed):
    for layout in LAYOUTS:
        parity.nonfinite(TARGET, TARGET.case(name), torch.bfloat16, layout, seed)
    parity.rounded_once(TARGET, TARGET.case(name), torch.bfloat16, "nchw", seed)


def test_exactness_leaves_the_tensor_cores(module):
    x, weights, kwargs = tensors("concat")
    assert explain(multi_dwconv2d, x, weights, **kwargs, backend="cuda").config == (
        "fwd tensor cores; bwd_x tensor cores; bwd_w tensor cores"
    )
    with exact_nonfinite():
        told = explain(multi_dwconv2d, x, weights, **kwargs, backend="cuda")
        assert told.config == "fwd tiles; bwd_x tiles; bwd_w generic"


def test_refusals(module, monkeypatch):
    x = torch.randn(1, 1, 3, 3)
    many = explain(multi_dwconv2d, x, [torch.randn(1, 1, 1, 1)] * 17)
    assert many.reasons["cuda"] == "17 branches; the kernels take up to 16"
    monkeypatch.setattr(module, "image_arch", lambda device: "no kernel image is available")
    core._image.cache_clear()
    told = explain(multi_dwconv2d, x, [torch.randn(1, 1, 3, 3)])
    assert told.reasons["cuda"] == "lightkernels._cuda does not run on this device: no kernel image is available"
    core._image.cache_clear()
    monkeypatch.setattr(core, "current_device", lambda: -1)
    assert explain(multi_dwconv2d, x, [torch.randn(1, 1, 3, 3)]).reasons["cuda"] == "there is no CUDA device"
    core._image.cache_clear()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_launches_of_large_calls_are_legal(module, dtype, layout):
    """Grids and shared memory of the benchmarks' and of absurd shapes; the emulator refuses what a device would."""
    module.dry = True
    size = {"float64": 8, "float32": 4, "bfloat16": 2}[dtype]
    shapes = [(128, 64, 32, 32), (128, 144, 56, 56), (256, 960, 7, 7), (1, 3, 9000, 9000), (70000, 1, 5, 5)]
    for n, c, h, w in [*shapes, (1, 70000, 14, 14), (2**31 - 1, 1, 1, 1), (1, 1, 1, 2**31 - 1)]:
        strides = (c * h * w, h * w, w, 1) if layout == "nchw" else (c * h * w, 1, w * c, c)
        outputs = tuple(3 * s if i == 0 else s for i, s in enumerate(strides))
        head = [n, c, h, w, h, w, 3 * c, 1, 1, 0, int(layout == "nhwc"), {8: 1, 4: 0, 2: 2}[size]]
        rows = [[k, 1, 0, i * c, c, sum(q * q for q in (3, 5, 7)[:i]) * c] for i, k in enumerate((3, 5, 7))]
        plan = module.MultiDwconv2dPlan(head, strides, outputs, rows, False)
        plan.fwd(0, 0, 0, 0, 0)
        plan.bwd_x(0, 0, 0, 0)
        assert plan.work_size() * 4 < 2**33
        plan.bwd_w(0, 0, 0, 0, 0)
    assert all(launch.threads <= 256 and launch.shared <= 48 * 1024 for launch in module.launches)


@pytest.mark.parametrize(
    ("dtype", "layout", "kernel"),
    [("bfloat16", "nchw", 5), ("float32", "nchw", 3), ("bfloat16", "nhwc", 3), ("float32", "nhwc", 9)],
)
def test_offsets_beyond_two_to_the_31(module, dtype, layout, kernel):
    """Two images of x and of y further apart than 2^31 elements, in memory that is only promised."""
    dtype, gap = getattr(torch, dtype), 2**31 + 64
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    room = [mmap.mmap(-1, (gap + 256) * dtype.itemsize, flags=flags) for _ in range(2)]
    x, y = (torch.frombuffer(r, dtype=dtype) for r in room)
    strides = (gap, 64, 8, 1) if layout == "nchw" else (gap, 1, 16, 2)
    x, y = (t.as_strided((2, 2, 8, 8), strides) for t in (x, y))
    x.copy_(torch.randn(2, 2, 8, 8))
    w = torch.randn(2, 1, kernel, kernel).to(dtype)
    near = x.contiguous(memory_format=LAYOUTS[layout])
    head = [2, 2, 8, 8, 8, 8, 2, 1, 1, 0, int(layout == "nhwc"), {4: 0, 2: 2}[dtype.itemsize]]
    plan = module.MultiDwconv2dPlan(head, strides, strides, [[kernel, 1, 0, 0, 2, 0]], False)
    plan.fwd(x.data_ptr(), w.data_ptr(), 0, y.data_ptr(), 0)
    due = multi_dwconv2d(near, [w], backend="cuda")
    assert_same_bits(y.contiguous(memory_format=LAYOUTS[layout]), due)
    grads = torch.autograd.grad(
        multi_dwconv2d(near.requires_grad_(), [w.requires_grad_()], backend="cuda"), [near, w], due
    )
    work, gw = torch.zeros(plan.work_size()), torch.zeros_like(w)
    plan.bwd_w(y.data_ptr(), x.data_ptr(), work.data_ptr(), gw.data_ptr(), 0)
    assert_same_bits(gw, grads[1])
    plan.bwd_x(y.data_ptr(), w.data_ptr(), x.data_ptr(), 0)
    assert_same_bits(x.contiguous(memory_format=LAYOUTS[layout]), grads[0])


@pytest.mark.parametrize(
    ("which", "told"),
    [
        (0, "threads wait for each other at different barriers"),
        (1, "lanes of a warp meet in different operations"),
        (3, "a matrix row at an address that is not aligned"),
        (5, "a launch beyond the limits of the device"),
        (4, ""),
    ],
)
def test_the_emulator_finds_faults(module, which, told):
    out = torch.zeros(64)
    module.c.lk_reset(0, 0)
    module.c.lk_faulty(which, cuda_host.pointer(out.data_ptr()))
    assert module.c.lk_fault().decode() == told


def test_the_emulator_shows_a_missing_barrier(module):
    found = []
    for reverse in (0, 1):
        out = torch.zeros(64)
        module.c.lk_reset(reverse, 0)
        module.c.lk_faulty(2, cuda_host.pointer(out.data_ptr()))
        found.append(out)
    right = (torch.arange(64.0) + 33) % 64
    assert found[0].isnan().any() and found[1].isnan().any()
    assert not any(torch.equal(f, right) for f in found) and not torch.equal(found[0].isnan(), found[1].isnan())


def test_the_emulator_shows_a_copy_that_is_not_awaited(module):
    found = []
    for which in (6, 7):
        out = torch.zeros(64)
        module.c.lk_reset(0, 0)
        module.c.lk_faulty(which, cuda_host.pointer(out.data_ptr()))
        assert not module.c.lk_fault().decode()
        found.append(out)
    assert found[0].isnan().all()
    assert torch.equal(found[1], torch.ones(64))


def test_the_committed_figures_are_of_kernels_that_do_not_spill():
    lines = [line for line in STATIC.read_text().splitlines() if not line.startswith("#")]
    rows = list(csv.DictReader(lines))
    kernels = {(row["file"].partition("/")[0], row["kernel"].partition("<")[0]) for row in rows}
    named = {(p.parent.name, m) for p in cuda_host.CSRC.glob("*/cuda*.cuh") for m in STRUCT.findall(p.read_text())}
    assert kernels == named
    assert {row["target"] for row in rows} == {"sm_80", "sm_90a", "sm_100"}
    assert {row["spills"] for row in rows} == {"0"}
    tensor = re.compile(r"Mma\w+<|Product\w+<b?f16")
    assert all((int(row["HMMA"]) > 0) == bool(tensor.match(row["kernel"])) for row in rows)

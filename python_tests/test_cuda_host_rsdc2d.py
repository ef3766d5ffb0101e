"""rsdc2d's native CUDA kernels without a GPU: the very kernels and launchers, lane by lane on the CPU."""

import dataclasses
import mmap
from types import SimpleNamespace

import cuda_host
import pytest
import torch

from checks import parity
from checks.target import Target, planted
from lightkernels import exact_nonfinite, explain, rsdc2d
from lightkernels._core import cuda_host as core
from lightkernels._core.spec import TensorMeta, dense_stride
from lightkernels.ops.rsdc2d import cuda
from lightkernels.ops.rsdc2d.op import Spec
from lightkernels.testing import assert_same_bits

if cuda_host.compiler() is None:
    pytest.skip("needs a C++ compiler", allow_module_level=True)

TARGET = Target("lightkernels.ops.rsdc2d", "cuda")
NAMES = [c.name for c in TARGET.cases.CASES if not {"bench", "bulk"} & c.tags]


@pytest.fixture
def module(tmp_path_factory):
    with cuda_host.device(cuda_host.Module(cuda_host.library(tmp_path_factory))) as module:
        yield module


def forms(name):
    """The dtypes in turn, and the layouts; the first cases in both."""
    i, dtypes = NAMES.index(name), (torch.float32, torch.bfloat16, torch.float64, torch.float16)
    for j, layout in enumerate(("nchw", "nhwc")):
        if i < 4 or i // 4 % 2 == j:
            yield layout, dtypes[(i + j) % 4]


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients(module, name, seed):
    """Against float64 truth, by the rule of the whole suite."""
    for layout, dtype in forms(name):
        parity.outputs_and_gradients(TARGET, TARGET.case(name), dtype, layout, seed)


FWD, BACK, GRAD = "pack mma_conv", "pack mma_back", "mma_grad sum_taps"
TENSOR, ANY = f"{FWD} {BACK} {GRAD}", "generic_fwd generic_bwd_x generic_bwd_w sum_taps"
TILES = "pack tile_conv pack tile_back tile_grad sum_taps"
HALVED = f"{FWD} generic_bwd_x {GRAD}"  # filters are no multiple of 16
# name: x's shape, filters, window, kind of sets, dtype, layout, keyword arguments, and what runs the forward and both
# gradients
CALLS = {
    "one tile": ((2, 16, 9, 7), 16, 5, "layer", "bfloat16", "nhwc", {}, TENSOR),
    "odd steps": ((1, 48, 5, 6), 80, 5, "layer", "float16", "nhwc", {"taps": 3}, TENSOR),
    "strided": ((1, 32, 9, 10), 32, 5, "layer", "bfloat16", "nhwc", {"stride": (2, 3), "dilation": 2}, TENSOR),
    "groups": ((3, 32, 7, 7), 48, 7, "group", "float16", "nhwc", {"groups": 2}, HALVED),
    "wide": ((1, 16, 4, 4), 144, 3, "layer", "bfloat16", "nhwc", {"padding": 2, "taps": 4}, TENSOR),
    "tall": ((1, 16, 17, 16), 80, 3, "layer", "float16", "nhwc", {"taps": 2}, TENSOR),
    "parts": ((2, 16, 12, 13), 16, 5, "layer", "bfloat16", "nhwc", {"taps": 4}, TENSOR),
    "one pixel": ((1, 16, 1, 1), 16, 3, "layer", "bfloat16", "nhwc", {}, TENSOR),
    "nchw": ((2, 16, 5, 9), 24, 5, "layer", "bfloat16", "nchw", {"bias": False}, HALVED),
    "own sets": ((1, 16, 5, 6), 16, 5, "filter", "bfloat16", "nhwc", {}, ANY),
    "exact": ((1, 16, 5, 6), 16, 5, "layer", "bfloat16", "nhwc", {}, ANY),
    "fp32": ((2, 16, 9, 8), 24, 5, "layer", "float32", "nhwc", {}, TILES),
    "fp32 nchw": ((1, 24, 5, 6), 72, 3, "layer", "float32", "nchw", {"taps": 5, "stride": 2}, TILES),
    "fp64": ((1, 8, 9, 8), 40, 5, "group", "float64", "nhwc", {"groups": 2, "taps": 4}, TILES),
}


def case_of(name):
    shape, filters, k, scope, dtype, layout, kwargs, due = CALLS[name]
    made = TARGET.cases.case(name, shape, filters, k, scope=scope, **kwargs)
    return made, getattr(torch, dtype), layout, due.split()


@pytest.mark.parametrize("name", CALLS)
def test_what_runs_and_that_no_barrier_is_missing(module, name, seed):
    """The kernels; right against float64 truth; and the same bits whichever lanes go first: what one lane hands
    another is guarded by barriers."""
    case, dtype, layout, due = case_of(name)
    sample = TARGET.build(case, dtype, layout, seed)
    with exact_nonfinite(name == "exact"):
        g = parity.upstream(parity.forward_shape(TARGET, sample), seed)
        module.launches.clear()
        first = parity.evaluate(TARGET, sample, g)
        ran = [launch.kernel for launch in module.launches]
        module.reverse = True
        second = parity.evaluate(TARGET, sample, g)
    assert ran == due
    parity.layouts_kept(sample, first)
    parity.judge(TARGET, sample, first, g)
    for (what, a), (_, b) in zip(first.named(), second.named(), strict=True):
        assert_same_bits(a, b, what)


def planted_call(name, **wrong):
    """The check of a call with some of the backend's functions replaced."""
    case, dtype, layout, _ = case_of(name)
    right = {name: getattr(cuda, name) for name in ("why_not", "fwd", "bwd_x", "bwd_w")}
    with planted(TARGET, SimpleNamespace(**{**right, **wrong})):
        parity.outputs_and_gradients(TARGET, case, dtype, layout, 3)


def test_the_checks_find_wrong_taps_and_a_forgotten_part(module):
    def moved(function):
        return lambda spec, a, b, *rest: function(spec, a, b, *rest[:-1], (rest[-1] + 1) % 25)

    def cut(spec, g, x, taps):
        return cuda.bwd_w(spec, torch.cat([g[:-1], torch.zeros_like(g[:1])]), x, taps)

    planted_call("one tile")
    for wrong in ({name: moved(getattr(cuda, name))} for name in cuda.PASSES):
        with pytest.raises(AssertionError):
            planted_call("one tile", **wrong)
    with pytest.raises(AssertionError):
        planted_call("one tile", bwd_w=cut)


@pytest.mark.parametrize("name", ["nchw", "strided", "fp32"])
def test_reads_stay_inside(module, name, seed):
    case, dtype, layout, _ = case_of(name)
    parity.inputs_between_nans(TARGET, case, dtype, layout, seed)


@pytest.mark.parametrize("name", ["one tile", "own sets"])
def test_non_finite_pixels_where_exactness_is_asked_for(module, name, seed):
    case, dtype, layout, _ = case_of(name)
    parity.nonfinite(TARGET, case, dtype, layout, seed)


def spec_of(shape, filters, sets=1, taps=9, k=5, dtype=torch.bfloat16, layout="nhwc", stride=1, groups=1):
    """A call's Spec, on no device."""
    x = TensorMeta(shape, dense_stride(shape, layout), dtype, torch.device("meta"))
    cells = torch.empty(sets, taps, dtype=torch.int64, device="meta")
    return Spec.of(x, None, None, cells, filters, k, (stride, stride), (k // 2, k // 2), (1, 1), groups)


@pytest.mark.parametrize(("dtype", "sets"), [(torch.bfloat16, 1), (torch.float32, 16)])
def test_taps_outside_the_window_are_no_taps(module, dtype, sets):
    spec = spec_of((1, 16, 6, 5), 16, sets=sets, dtype=dtype, stride=2)
    cells = torch.tensor([[3, -1, 12, 25, 24, 2**62, -(2**63), 0, 7]]).expand(sets, -1)
    good = (cells[0] >= 0) & (cells[0] < 25)
    less = spec_of((1, 16, 6, 5), 16, sets=sets, dtype=dtype, stride=2, taps=int(good.sum()))
    x, g = torch.randn(spec.x_shape).to(dtype), torch.randn(spec.y_shape).to(dtype)
    x, g = (t.contiguous(memory_format=torch.channels_last) for t in (x, g))
    w = torch.randn(spec.weight_shape).to(dtype)
    few, kept = w[:, :, good], cells[:, good]
    assert_same_bits(cuda.fwd(spec, x, w, None, cells), cuda.fwd(less, x, few, None, kept))
    assert_same_bits(cuda.bwd_x(spec, g, w, cells), cuda.bwd_x(less, g, few, kept))
    gw = cuda.bwd_w(spec, g, x, cells)
    torch.testing.assert_close(gw[:, :, good], cuda.bwd_w(less, g, x, kept))  # other tiles, other parts
    assert not gw[:, :, ~good].any()


def test_explanations_and_refusals(module, monkeypatch):
    x, w, taps = torch.randn(1, 16, 5, 6).bfloat16(), torch.randn(16, 16, 9).bfloat16(), torch.arange(9)[None]
    told = explain(rsdc2d, x, w, taps, kernel_size=5, backend="cuda")
    assert told.config == "fwd tensor cores; bwd_x tensor cores; bwd_w tensor cores"
    assert told.copies == "x is copied into channels_last: the matrix product reads a pixel's channels side by side"
    x = x.contiguous(memory_format=torch.channels_last)
    assert explain(rsdc2d, x, w, taps, kernel_size=5, backend="cuda").copies is None
    told = explain(rsdc2d, x.float(), w.float(), taps, kernel_size=5, backend="cuda")
    assert told.config == "fwd tiles; bwd_x tiles; bwd_w tiles"
    with exact_nonfinite():
        told = explain(rsdc2d, x, w, taps, kernel_size=5, backend="cuda")
    assert told.config == "fwd tap by tap; bwd_x tap by tap; bwd_w tap by tap"
    many = dataclasses.replace(spec_of((2**31, 1, 1, 1), 1), device="cpu")
    assert cuda.why_not(many) == "a size above 2**31 - 1"
    large = dataclasses.replace(spec_of((1, 1, 1, 1), 1), device="cpu", kernel_size=65537)
    assert cuda.why_not(large) == "a window of 65537; the kernels take up to 65535"
    monkeypatch.setattr(core, "current_device", lambda: -1)
    assert explain(rsdc2d, x, w, taps, kernel_size=3, stride=3).reasons["cuda"] == "there is no CUDA device"
    core._image.cache_clear()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_launches_of_large_calls_are_legal(module, dtype, layout):
    """Grids and shared memory of the benchmarks' and of absurd shapes; the emulator refuses what a device would."""
    module.dry = True
    shapes = [((256, 64, 56, 56), 64), ((128, 176, 16, 16), 176), ((256, 512, 7, 7), 512), ((1, 16, 9000, 9000), 8)]
    shapes += [((70000, 16, 5, 5), 16), ((1, 70000, 14, 14), 16), ((2**27, 1, 1, 1), 1), ((1, 16, 1, 2**27), 16)]
    for shape, filters in shapes:
        for stride in (1, 2):
            spec = spec_of(shape, filters, dtype=dtype, layout=layout, stride=stride)
            plan = cuda._plan(spec, spec.dense_x_stride, spec.y_stride)
            plan.fwd(0, 0, 0, 0, 0, 0, 0)
            plan.bwd_x(0, 0, 0, 0, 0, 0)
            assert plan.work_size(2) < 2**34
            plan.bwd_w(0, 0, 0, 0, 0, 0)
    assert all(launch.threads <= 256 for launch in module.launches)
    names = {launch.kernel for launch in module.launches}
    assert ("mma_conv" in names) == (dtype is torch.bfloat16 and layout == "nhwc")
    assert ("tile_conv" in names) == (dtype is not torch.bfloat16 and layout == "nhwc")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_offsets_beyond_two_to_the_31(module, dtype):
    """Two images of x and of y further apart than 2^31 elements, in memory that is only promised."""
    gap, c, h, w = 2**31 + 64, 16, 4, 4
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    room = [mmap.mmap(-1, (gap + 512) * dtype.itemsize, flags=flags) for _ in range(2)]
    strides = (gap, 1, w * c, c)
    x, y = (torch.frombuffer(r, dtype=dtype).as_strided((2, c, h, w), strides) for r in room)
    x.copy_(torch.randn(2, c, h, w))
    spec, weight = spec_of((2, c, h, w), c, dtype=dtype), torch.randn(c, c, 9).to(dtype)
    taps = torch.tensor([[0, 3, 6, 7, 12, 13, 18, 19, 24]])
    form = torch.channels_last
    near, plan = x.contiguous(memory_format=form), cuda._plan(spec, strides, strides)
    work, gw = torch.zeros(max(plan.work_size(i) for i in range(3)), dtype=torch.uint8), torch.zeros_like(weight)
    at = [t.data_ptr() for t in (x, weight, taps, work, y, gw)]
    plan.fwd(at[0], at[1], 0, at[2], at[3], at[4], 0)
    due = cuda.fwd(spec, near, weight, None, taps)
    assert_same_bits(y.contiguous(memory_format=form), due)
    plan.bwd_w(at[4], at[0], at[2], at[3], at[5], 0)
    assert_same_bits(gw, cuda.bwd_w(spec, due, near, taps))
    plan.bwd_x(at[4], at[1], at[2], at[3], at[0], 0)
    assert_same_bits(x.contiguous(memory_format=form), cuda.bwd_x(spec, due, weight, taps))

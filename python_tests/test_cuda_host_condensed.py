"""condensed_conv2d's native CUDA kernels without a GPU: the very kernels and launchers, lane by lane on the CPU."""

import contextlib
import dataclasses
import mmap
from types import SimpleNamespace

import cuda_host
import pytest
import torch

from checks import parity
from checks.target import Target, planted
from lightkernels import condensed_conv2d, explain
from lightkernels._core import cuda_host as core
from lightkernels._core.spec import TensorMeta, dense_stride
from lightkernels.ops.condensed_conv2d import cuda, reference
from lightkernels.ops.condensed_conv2d.spec import Inputs, Spec
from lightkernels.testing import assert_accurate, assert_same_bits

if cuda_host.compiler() is None:
    pytest.skip("needs a C++ compiler", allow_module_level=True)

TARGET = Target("lightkernels.ops.condensed_conv2d", "cuda")
CASES = [c for c in TARGET.cases.CASES if not {"bench", "bulk"} & c.tags]
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.float16)


@pytest.fixture
def module(tmp_path_factory):
    with cuda_host.device(cuda_host.Module(cuda_host.library(tmp_path_factory))) as module:
        yield module


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_outputs_and_gradients(module, case, seed):
    """Against float64 truth, by the rule of the whole suite; a wide and a 16-bit dtype each."""
    i = CASES.index(case)
    parity.outputs_and_gradients(TARGET, case, DTYPES[2 * (i % 2)], "nchw", seed)
    parity.outputs_and_gradients(TARGET, case, DTYPES[2 * (i % 2) + 1], "nhwc", seed)


TENSOR = ["mma_fwd", "mma_back", "sum_parts", "collect", "mma_grad", "sum_parts"]
TILES = [name.replace("mma", "tile") for name in TENSOR]
# name: x's shape, filters, groups, picked channels, dtype, layout, activation, and what runs
CALLS = {
    "blocks of groups": ((3, 20, 8, 8), 12, 4, 5, "bfloat16", "nchw", "relu", TENSOR),
    "steps": ((1, 80, 4, 6), 66, 2, 70, "float16", "nchw", "relu", TENSOR),
    "odd maps": ((2, 40, 3, 5), 130, 2, 33, "bfloat16", "nhwc", "relu", TENSOR),
    "hardswish": ((5, 9, 7, 5), 10, 2, 9, "float16", "nhwc", "hardswish", TENSOR),
    "fp32": ((2, 24, 8, 9), 70, 2, 17, "float32", "nchw", "relu", TILES),
    "fp32 pixels": ((2, 30, 9, 9), 15, 3, 35, "float32", "nhwc", "hardswish", TILES),
    "fp64": ((1, 12, 7, 11), 36, 1, 19, "float64", "nchw", "hardswish", TILES),
    "fp64 pixels": ((9, 12, 4, 4), 8, 4, 3, "float64", "nhwc", "relu", TILES),
}


def tensors(name):
    """A call's tensors; channels come more than once, in a group too."""
    shape, filters, groups, picked, dtype, layout, activation, _ = CALLS[name]
    dtype = getattr(torch, dtype)
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    x = torch.randn(shape, dtype=torch.float64).to(dtype).contiguous(memory_format=LAYOUTS[layout])
    weight = torch.randn(filters, picked).to(dtype)
    norms = [torch.randn(groups * picked, dtype=wide) for _ in range(2)]
    return [x, weight, torch.randint(shape[1], (groups, picked)), *norms], activation


def evaluated(call, given, activation, g=None, **kwargs):
    """The output and the gradients of all but the index."""
    leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in given]
    y = call(*leaves, activation=activation, **kwargs)
    wanted = [t for t in leaves if t.requires_grad]
    return [y.detach(), *torch.autograd.grad(y, wanted, torch.ones_like(y) if g is None else g.to(y.dtype))]


@pytest.mark.parametrize("name", CALLS)
def test_what_runs_and_that_no_barrier_is_missing(module, name):
    """The kernels; right against float64 truth; and the same bits whichever lanes go first: what one lane hands
    another is guarded by barriers."""
    given, activation = tensors(name)
    y = condensed_conv2d(*given, activation=activation, backend="cuda")
    g = torch.randn_like(y)
    module.launches.clear()
    first = evaluated(condensed_conv2d, given, activation, g, backend="cuda")
    assert [launch.kernel for launch in module.launches] == CALLS[name][-1]
    module.reverse = True
    second = evaluated(condensed_conv2d, given, activation, g, backend="cuda")
    truth = evaluated(reference.forward, [t.double() if t.is_floating_point() else t for t in given], activation, g)
    plain = evaluated(reference.forward, given, activation, g)
    for i, (a, b, due, base) in enumerate(zip(first, second, truth, plain, strict=True)):
        assert_same_bits(a, b, f"result {i}")
        assert_accurate(a, due, base, f"result {i}", 16 if i else 2)
    assert (
        first[0].stride()
        == y.stride()
        == given[0].new_empty(y.shape).contiguous(memory_format=LAYOUTS[CALLS[name][5]]).stride()
    )


def test_the_checks_find_a_forgotten_image(module, seed):
    def cut(spec, g, t, out):
        return cuda.bwd(spec, torch.cat([g[:-1], torch.zeros_like(g[:1])]), t, out)

    right = {name: getattr(cuda, name) for name in ("why_not", "infer", "fwd")}
    for bwd in (cuda.bwd, cut):
        with planted(TARGET, SimpleNamespace(**right, bwd=bwd)), contextlib.ExitStack() as stack:
            if bwd is cut:
                stack.enter_context(pytest.raises(AssertionError))
            parity.outputs_and_gradients(TARGET, CASES[0], torch.float32, "nchw", seed)


def test_the_check_finds_a_wrong_channel(module):
    given, activation = tensors("steps")
    truth = reference.forward(*given, activation=activation)
    given[2] = given[2].roll(1)
    with pytest.raises(AssertionError):
        assert_accurate(condensed_conv2d(*given, activation=activation, backend="cuda"), truth.double(), truth, "y", 2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_slices_are_read_in_place_and_nothing_beside_them(module, dtype, layout):
    given, _ = tensors("blocks of groups")
    whole = torch.full((6, 27, 8, 8), float("nan")).to(dtype).contiguous(memory_format=LAYOUTS[layout])
    x = whole[2:5, 3:23]
    x.copy_(given[0])
    rest = [t.to(dtype) if i == 0 else t for i, t in enumerate(given[1:])]
    y = condensed_conv2d(x, *rest, backend="cuda")
    assert_same_bits(y, condensed_conv2d(x.contiguous(memory_format=LAYOUTS[layout]), *rest, backend="cuda"))
    assert y.isfinite().all()
    assert explain(condensed_conv2d, x, *rest, backend="cuda").copies is None
    gaps = whole[2:5, 3:23, :, 1:]
    assert explain(condensed_conv2d, gaps, *rest, backend="cuda").copies.startswith("x is copied: its strides")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_index_outside_reads_nothing(module, layout):
    """Its channel counts as zeros; in all rows, at the ends of what 64 bits hold."""
    given, _ = tensors("fp32")
    x, weight, index, scale, shift = given
    x = torch.cat([x, torch.zeros_like(x[:, :1])], 1).contiguous(memory_format=LAYOUTS[layout])
    bad, zero = index.clone(), index.clone()
    bad[:, 1:7] = torch.tensor([-1, x.shape[1], 2**31, 2**32, -(2**63), 2**63 - 1])
    zero[:, 1:7] = x.shape[1] - 1
    found = evaluated(condensed_conv2d, [x, weight, bad, scale, shift], "relu", backend="cuda")
    due = evaluated(condensed_conv2d, [x, weight, zero, scale, shift], "relu", backend="cuda")
    due[1][:, -1] = 0  # what it picked gets nothing
    for i, (a, b) in enumerate(zip(found, due, strict=True)):
        assert_same_bits(a, b, f"result {i}")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_non_finite_pixels_reach_what_reads_them(module, dtype):
    x, weight = torch.randn(2, 6, 3, 5).to(dtype), torch.randn(8, 2).to(dtype)
    index = torch.tensor([[0, 3], [1, 2], [3, 4], [5, 5]])
    for value in (float("nan"), float("inf")):
        x[1, 3, 2, 1] = value
        for layout in LAYOUTS.values():
            given = (x.contiguous(memory_format=layout), weight, index, torch.ones(8), torch.zeros(8))
            y = condensed_conv2d(*given, backend="cuda")
            assert torch.equal(y.isnan(), reference.forward(*given).isnan())
            assert torch.equal(y.isfinite().logical_not().nonzero()[:, 1], torch.tensor([0, 2, 4, 6]))


def spec_of(shape, filters, groups, picked, dtype=torch.bfloat16, layout="nhwc"):
    """A call's Spec, on no device."""

    def meta(size, of):
        stride = dense_stride(size, layout) if len(size) == 4 else (1,) * len(size)
        return TensorMeta(size, stride, of, torch.device("meta"))

    norm = meta((groups * picked,), torch.float64 if dtype is torch.float64 else torch.float32)
    t = Inputs(meta(shape, dtype), meta((filters, picked), dtype), norm, norm, meta((groups, picked), torch.int64))
    return Spec.of(t, "relu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_launches_of_large_calls_are_legal(module, dtype, layout):
    """Grids and shared memory of the benchmarks' and of absurd shapes; the emulator refuses what a device would."""
    module.dry = True
    sizes = [((256, 64, 32, 32), 32, 4, 16), ((64, 480, 28, 28), 128, 4, 120), ((2**20, 1, 64, 64), 1, 1, 1)]
    sizes += [((1, 2**20, 8, 8), 2**20, 2**10, 7), ((2**31 - 1, 1, 1, 1), 2, 2, 1), ((1, 9, 2**15, 2**15), 9, 3, 3)]
    for size in sizes:
        spec = spec_of(*size, dtype=dtype, layout=layout)
        plan = cuda._plan(spec, spec.dense_x_stride)
        plan.fwd(0, 0, 0, 0, 0, 0, 0)
        assert plan.work_size() < 2**45
        plan.bwd(*[0] * 14)
    assert all(launch.threads <= 512 for launch in module.launches)


def test_explanations_and_refusals(module, monkeypatch):
    given, _ = tensors("steps")
    told = explain(condensed_conv2d, *given, backend="cuda")
    assert told.chosen == "cuda" and told.config.startswith("fwd tensor cores; bwd ")
    wide = [t.float() if t.is_floating_point() else t for t in given]
    assert explain(condensed_conv2d, *wide, backend="cuda").config.startswith("fwd tiles; bwd ")
    many = dataclasses.replace(spec_of((2**20, 1, 2**11, 2**11), 256, 256, 1), device="cpu")
    assert cuda.why_not(many) == "a size above 2**31 - 1"
    monkeypatch.setattr(core, "current_device", lambda: -1)
    core._image.cache_clear()
    assert explain(condensed_conv2d, *given, activation="hardswish").reasons["cuda"] == "there is no CUDA device"
    core._image.cache_clear()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_offsets_beyond_two_to_the_31(module, dtype):
    """Two images further apart than 2^31 elements, in memory that is only promised."""
    gap, c, h, w = 2**31 + 64, 16, 4, 4
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    room = mmap.mmap(-1, (gap + 512) * dtype.itemsize, flags=flags)
    near = torch.randn(2, c, h, w).to(dtype)
    rest = [torch.randn(8, 4).to(dtype), torch.randint(c, (2, 4)), torch.randn(8), torch.randn(8)]
    for strides in ((gap, 1, w * c, c), (gap, h * w, w, 1)):
        x = torch.frombuffer(room, dtype=dtype).as_strided((2, c, h, w), strides)
        x.copy_(near)
        found = evaluated(condensed_conv2d, [x, *rest], "relu", backend="cuda")
        form = LAYOUTS["nhwc" if strides[1] == 1 else "nchw"]
        due = evaluated(condensed_conv2d, [near.contiguous(memory_format=form), *rest], "relu", backend="cuda")
        for i, (a, b) in enumerate(zip(found, due, strict=True)):
            assert_same_bits(a, b, f"result {i}")

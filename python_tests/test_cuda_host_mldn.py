"""mldn_block's native CUDA kernels without a GPU: the very kernels and launchers, lane by lane on the CPU."""

import dataclasses

import cuda_host
import pytest
import torch

from lightkernels import BackendUnavailable, exact_nonfinite, explain, mldn_block
from lightkernels._core import cuda_host as core
from lightkernels._core.spec import TensorMeta, dense_stride
from lightkernels.ops.mldn_block import cases, cuda, op, reference
from lightkernels.testing import assert_accurate, assert_keeps_layout, assert_same_bits, poisoned

if cuda_host.compiler() is None:
    pytest.skip("needs a C++ compiler", allow_module_level=True)

LARGE, SMALL = 227 * 1024, 32 * 1024  # bytes of shared memory
DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture
def module(tmp_path_factory):
    with cuda_host.device(cuda_host.Module(cuda_host.library(tmp_path_factory))) as module:
        core._shared.cache_clear()
        yield module
    core._shared.cache_clear()


def call(*args, **kwargs):
    return cases.case("call", *args, running=True, **kwargs)


# name: the call, dtypes, bytes of shared memory, and what runs behind the packing
BLOCK = {"groups": 4, "bottleneck": 4}
CALLS = {
    "whole": (call((2, 8, 8, 8), 3, 2, 24, **BLOCK), "bf16 fp32", LARGE, ["block"]),
    "layers": (call((2, 8, 8, 8), 3, 2, 24, **BLOCK), "bf16 fp64", SMALL, ["layer"] * 3),
    "odd maps": (call((1, 9, 9, 7), 2, 1, 5, bottleneck=3, bias=True), "fp16 fp32", LARGE, ["block"]),
    "bands": (call((1, 12, 11, 19), 2, 2, 8, kernel_size=5, sets=1), "bf16 fp32", SMALL, ["layer"] * 2),
    "wide pixels": (call((1, 16, 24, 24), 1, 2, 16, **BLOCK), "bf16 fp32", LARGE, ["layer"]),
    "taps of groups": (
        call((1, 8, 9, 8), 3, 4, 8, groups=2, pairing="butterfly", kernel_size=5, sets=2), "bf16 fp64", LARGE, ["block"]
    ),
    "taps of filters": (
        call((1, 8, 6, 5), 4, 4, 16, groups=2, pairing="rotate", kernel_size=5, sets=4), "fp16 fp32", LARGE, ["block"]
    ),
    "many filters": (call((1, 6, 5, 6), 1, 2, 76, bottleneck=2, bias=True), "bf16 fp32", LARGE, ["block"]),
}  # fmt: skip


def run(sample, function=mldn_block, **kwargs):
    given = {k: v for k, v in sample.kwargs.items() if k != "recompute"}
    with torch.no_grad(), poisoned():
        return function(*sample.args, **given, **kwargs)


def checked(sample, module, ulps=2):
    """The output, judged by float64 truth, and the same bits whichever lanes go first."""
    y = run(sample, backend="cuda")
    launches = [launch.kernel for launch in module.launches]
    module.reverse = True
    assert_same_bits(run(sample, backend="cuda"), y, "lanes in the other order")
    module.reverse = False
    truth = run(sample.map(lambda t: t.double() if t.is_floating_point() else t), reference.forward)
    assert_accurate(y, truth, run(sample, reference.forward), "y", ulps)
    assert_keeps_layout(sample.args[0], y)
    return launches


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("name", CALLS)
def test_outputs_what_runs_and_that_no_barrier_is_missing(module, name, layout, seed):
    case, dtypes, module.most_shared, kernels = CALLS[name]
    for dtype in dtypes.split():
        module.launches.clear()
        sample = case.build(seed, DTYPES[dtype], layout, "cpu")
        form = "mma" if dtype in ("bf16", "fp16") else "tile"
        found = checked(sample, module, 8 if dtype == "fp64" else 2)
        assert found == ["pack", *(f"{form}_{kernel}" for kernel in kernels)]
    core._shared.cache_clear()


def condensed(seed, dtype, layout, wrong=False):
    """A condensed block, and the same with one index entry that is no channel."""
    torch.manual_seed(seed)
    layers, paths, kappa, mid, groups, factor, c = 3, 2, 4, 8, 2, 2, 4
    widths = [c + i * kappa for i in range(layers) for _ in range(paths)]
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    index = torch.cat([torch.randperm(w)[: w // factor] for w in widths for _ in range(groups)])
    columns, many = len(index), layers * paths
    x = torch.randn(2, c * paths, 6, 7).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last if layout == "nhwc" else torch.contiguous_format)
    one = torch.randn(mid * sum(widths) // factor).to(dtype)
    three = torch.randn(many * kappa * mid * 9).to(dtype) * 0.3
    norms = [torch.randn(2, n, dtype=wide) for n in (columns, many * mid)]
    running = [
        torch.stack([torch.randn(n, dtype=wide), torch.rand(n, dtype=wide) + 0.5]) for n in (columns, many * mid)
    ]
    values = {"num_layers": layers, "paths": paths, "growth": paths * kappa, "bottleneck": 2, "groups": 1}
    values |= {"running1": running[0], "running2": running[1], "index": index}
    values |= {"index_groups": groups, "condense_factor": factor}
    if wrong:
        index[3], index[7] = 2**40, -1
        norms[0][:, [3, 7]] = 0  # what the definition has in its place
        values["running1"][:, [3, 7]] = torch.tensor([[0.0], [1.0]], dtype=wide)
    return [x, one, three, *norms], values


@pytest.mark.parametrize(("dtype", "most"), [("fp32", LARGE), ("bf16", SMALL), ("fp16", LARGE), ("fp64", SMALL)])
def test_condensed_blocks(module, dtype, most, seed):
    module.most_shared = most
    for layout in ("nchw", "nhwc"):
        args, values = condensed(seed, DTYPES[dtype], layout)
        y = mldn_block(*args, **values, backend="cuda")
        wide = {
            k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in values.items()
        }
        truth = reference.forward(*(t.double() for t in args), **wide)
        assert_accurate(y, truth, reference.forward(*args, **values), "y", 8 if dtype == "fp64" else 2)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_an_index_or_a_tap_outside_reads_nothing(module, dtype, seed):
    """It counts as zeros, at the ends of what 64 bits hold."""
    args, values = condensed(seed, DTYPES[dtype], "nchw", wrong=True)
    y = mldn_block(*args, **values, backend="cuda")
    values["index"] = values["index"].clone()
    values["index"][[3, 7]] = 0
    assert_accurate(
        y, reference.forward(*(t.double() for t in args), **values), reference.forward(*args, **values), "y", 2
    )
    case = cases.case("taps", (1, 8, 6, 5), 2, 2, 8, running=True, kernel_size=5, sets=1, groups=2)
    sample = case.build(seed, DTYPES[dtype], "nhwc", "cpu")
    taps = sample.kwargs["taps"]
    good, bad, three = taps.clone(), taps.clone(), sample.args[2].clone()
    for i, value in enumerate((-1, 25, 2**32, 2**63 - 1, -(2**63))):
        bad[i % 4, i] = value
        three.view(4, -1, 9)[i % 4, :, i] = 0
    kwargs = {k: v for k, v in sample.kwargs.items() if k not in ("taps", "recompute")}
    found = unchecked(sample.args, kwargs | {"taps": bad})
    due = unchecked([*sample.args[:2], three, *sample.args[3:]], kwargs | {"taps": good})
    assert_same_bits(found, due)


def unchecked(args, kwargs):
    """The backend itself, as the operator refuses such taps."""
    t, values = op.prepare(*args, **kwargs)
    metas = op.Inputs(*(None if one is None else TensorMeta.of(one) for one in t))
    with torch.no_grad():
        return cuda.infer(op.Spec.of(metas, *values), t)


def test_the_check_finds_a_wrong_weight(module, seed):
    case, _, module.most_shared, _ = CALLS["whole"]
    sample = case.build(seed, torch.bfloat16, "nchw", "cpu")
    y = run(sample, backend="cuda")
    sample.args[2][:50] += 1
    due = run(sample, reference.forward)
    with pytest.raises(AssertionError):
        assert_accurate(y, due.double(), due, "y", 2)


def test_a_slice_is_read_and_nan_stays(module, seed):
    case = CALLS["whole"][0]
    sample = case.build(seed, torch.float32, "nchw", "cpu")
    x = torch.full((2, 19, 8, 8), float("nan"))
    x[:, 3:11] = sample.args[0]
    other = sample.replace([x[:, 3:11], *sample.tensors()[1:]])
    assert_same_bits(run(other, backend="cuda"), run(sample, backend="cuda"))
    x[1, 4, 3, 3] = float("nan")
    y, due = run(other, backend="cuda"), run(other, reference.forward)
    assert torch.equal(y.isnan(), due.isnan()) and 1 < int(y.isnan().sum()) < y[1].numel()


def spec_of(shape, layers, paths, growth, dtype=torch.bfloat16, layout="nhwc", **kwargs):
    kappa = growth // paths
    x = TensorMeta(shape, dense_stride(shape, layout), dtype, torch.device("meta"))
    spec = call((1, paths, 1, 1), 1, paths, growth, **kwargs).build(0, dtype, layout, "cpu")
    t, values = op.prepare(*spec.args, **{k: v for k, v in spec.kwargs.items() if k != "recompute"})
    metas = op.Inputs(*(None if one is None else TensorMeta.of(one) for one in t))
    small = op.Spec.of(metas, *values)
    assert small.kappa == kappa
    more = {"n": shape[0], "c": shape[1], "h": shape[2], "w": shape[3], "layers": layers, "x_stride": x.stride}
    return dataclasses.replace(small, **more, device="cpu", layout=layout, cache={})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("most", [99 * 1024, LARGE])
def test_launches_of_large_calls_are_legal_and_fit(module, dtype, most):
    """Grids and shared memory of the benchmarks' and of large shapes; the emulator refuses what a device would."""
    module.dry, module.most_shared = True, most
    shapes = [(128, 16, 32, 32), (128, 176, 16, 16), (128, 256, 8, 8), (64, 64, 56, 56), (64, 268, 14, 14)]
    for shape in [*shapes, (2**20, 16, 4, 4), (1, 16, 8192, 64)]:
        spec = spec_of(shape, 14, 2, 24, dtype, **BLOCK)
        assert cuda.why_not(spec) is None
        rows, bands, together, resident, shared = cuda._cut(spec)
        assert shared <= most and rows * bands >= shape[2] > rows * (bands - 1)
        assert resident == (rows == shape[2] and together == 2) or not resident
        plan = cuda._plan(spec)
        module.launches.clear()
        plan.infer([0] * 16, most, 0, 0, 0)
        layers = module.launches[1:]
        assert len(layers) == (1 if resident else 14)
        assert all(one.grid[0] == shape[0] * bands * 2 // together and one.shared == shared for one in layers)
        assert plan.work_size() < 2**31


def test_whole_blocks_where_they_fit(module):
    """The benchmark's 8 x 8 block on a device that gives a block of threads 227 KiB, and not on one that gives 99."""
    spec = spec_of((128, 256, 8, 8), 14, 2, 24, **BLOCK)
    assert cuda._cut(spec)[2:4] == (2, 1)
    assert cuda._plan(spec).cut(99 * 1024)[2:4] == (1, 0)
    alone = spec_of((4, 16, 32, 32), 1, 2, 24, **BLOCK)  # few images of many pixels
    assert cuda._cut(alone)[3] == 0


def test_explanations_and_refusals(module, seed):
    sample = CALLS["whole"][0].build(seed, torch.bfloat16, "nhwc", "cpu")
    given = {k: v for k, v in sample.kwargs.items() if k != "recompute"}

    def told(dtype=torch.bfloat16, **kwargs):
        args = [t if t is None or i in (3, 4) else t.to(dtype) for i, t in enumerate(sample.args)]
        with torch.no_grad():
            return explain(mldn_block, *args, **{**given, **kwargs}, backend="cuda")

    found = told()
    assert found.chosen == "cuda"
    assert found.config == "tensor cores; all layers in one launch, an image of 2 paths in 35 KiB of shared memory"
    module.most_shared = SMALL
    core._shared.cache_clear()
    assert told(torch.float32).config.startswith("tiles; a launch a layer, ")
    with exact_nonfinite():
        assert told().reasons["cuda"].startswith("tensor cores multiply what other groups")
        assert told(torch.float32).chosen == "cuda"
    training = "the kernels evaluate: running statistics, no dropout, nothing kept for a backward"
    assert told(running1=None, running2=None).reasons["cuda"] == training
    wide = spec_of((1, 16, 4, 2**14), 2, 2, 24, **BLOCK)
    assert cuda.why_not(wide) == "a row of 16384 pixels with what it reaches does not fit in shared memory"
    many = spec_of((2**20, 16, 2**12, 2), 2, 2, 24, **BLOCK)
    assert cuda.why_not(many) == "a size above 2**31 - 1"


def test_frozen_norms_that_recompute_have_gradients(module, seed):
    sample = CALLS["odd maps"][0].build(seed, torch.float32, "nchw", "cpu").requires_grad()
    given = {**sample.kwargs, "recompute": True}

    def gradients(function, **kwargs):
        y = function(*sample.args, **given, **kwargs)
        return torch.autograd.grad(y, sample.tensors(), torch.ones_like(y))

    pairs = zip(gradients(mldn_block, backend="cuda"), gradients(reference.forward), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in pairs)
    with pytest.raises(BackendUnavailable, match="the kernels evaluate"):
        mldn_block(*sample.args, **{**given, "recompute": False}, backend="cuda")

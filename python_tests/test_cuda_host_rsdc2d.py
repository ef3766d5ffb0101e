"""rsdc2d's native CUDA kernels without a GPU: the very kernels and launchers, lane by lane on the CPU."""

import cuda_host
import pytest
import torch

from checks import parity
from checks.target import Target
from lightkernels import exact_nonfinite
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
    """Every case in both layouts, with the dtypes in turn."""
    i, dtypes = NAMES.index(name), (torch.float32, torch.bfloat16, torch.float64, torch.float16)
    yield "nchw", dtypes[i % 4]
    yield "nhwc", dtypes[(i + 1) % 4]


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients(module, name, seed):
    """Against float64 truth, by the rule of the whole suite."""
    for layout, dtype in forms(name):
        parity.outputs_and_gradients(TARGET, TARGET.case(name), dtype, layout, seed)


# name: x's shape, filters, window, kind of sets, dtype, layout, keyword arguments, and what runs the forward and both
# gradients
CALLS = {
    "one tile": ((2, 16, 9, 7), 16, 5, "layer", "bfloat16", "nhwc", {}, "mma_pack mma_conv mma_pack mma_back"),
    "odd steps": ((1, 48, 5, 6), 80, 5, "layer", "float16", "nhwc", {"taps": 3}, "mma_pack mma_conv mma_pack mma_back"),
    "strided": ((1, 32, 9, 10), 32, 5, "layer", "bfloat16", "nhwc", {"stride": (2, 3), "dilation": 2},
                "mma_pack mma_conv mma_pack mma_back"),
    "groups": ((3, 32, 7, 7), 48, 7, "group", "float16", "nhwc", {"groups": 2}, "mma_pack mma_conv generic_bwd_x"),
    "wide": ((1, 16, 4, 4), 144, 3, "layer", "bfloat16", "nhwc", {"padding": 2, "taps": 4},
             "mma_pack mma_conv mma_pack mma_back"),
    "nchw": ((2, 16, 5, 9), 24, 5, "layer", "bfloat16", "nchw", {"bias": False}, "mma_pack mma_conv generic_bwd_x"),
    "own sets": ((1, 16, 5, 6), 16, 5, "filter", "bfloat16", "nhwc", {}, "generic_fwd generic_bwd_x"),
    "exact": ((1, 16, 5, 6), 16, 5, "layer", "bfloat16", "nhwc", {}, "generic_fwd generic_bwd_x"),
    "fp32": ((1, 16, 5, 6), 16, 5, "layer", "float32", "nhwc", {}, "generic_fwd generic_bwd_x"),
}  # fmt: skip


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
    assert ran[: len(due)] == due
    assert ran[-1] == "sum_taps"
    parity.layouts_kept(sample, first)
    parity.judge(TARGET, sample, first, g)
    for (what, a), (_, b) in zip(first.named(), second.named(), strict=True):
        assert_same_bits(a, b, what)

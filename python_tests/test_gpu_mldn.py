"""mldn_block and condensed_conv2d on a GPU: compiled kernels of many tiles against float64 truth, graphs, repeats."""

from __future__ import annotations

import os
import random

import pytest
import torch

from lightkernels import condensed_conv2d, mldn_block
from lightkernels._core import native
from lightkernels.ops.condensed_conv2d import cases as condensed
from lightkernels.ops.condensed_conv2d import reference as condensed_reference
from lightkernels.ops.mldn_block import cases as blocks
from lightkernels.ops.mldn_block import reference as block_reference
from lightkernels.testing import assert_accurate, assert_keeps_layout, assert_same_bits, poisoned

pytestmark = pytest.mark.gpu

DEVICE, BACKEND = "cuda", "triton"
SEED = int(os.environ.get("LIGHTKERNELS_TEST_SEED") or random.SystemRandom().randrange(2**31))
DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16, "fp16": torch.float16}
BLOCK = {"groups": 4, "bottleneck": 4}
CASES = {
    "block": blocks.case("block", (16, 16, 32, 32), 3, 2, 24, **BLOCK),
    "block-large": blocks.case("block-large", (40, 32, 31, 30), 2, 2, 32, **BLOCK, recompute=True, bias=True),
    "block-rsdc": blocks.case("block-rsdc", (8, 16, 17, 19), 3, 2, 16, **BLOCK, kernel_size=5, sets=8, dropout=0.2),
    "block-layer-taps": blocks.case("block-layer-taps", (8, 16, 16, 16), 2, 4, 16, **BLOCK, kernel_size=7, sets=1),
    "block-rotated": blocks.case("block-rotated", (6, 24, 14, 14), 4, 4, 48, **BLOCK, pairing="rotate"),
    "block-running": blocks.case("block-running", (8, 16, 28, 28), 3, 2, 24, **BLOCK, running=True),
    "block-second": blocks.case("block-second", (8, 16, 15, 13), 3, 2, 24, **BLOCK, version=2),
    "condensed": condensed.case("condensed", (16, 240, 16, 16), 64, 4, 60),
    "condensed-ragged": condensed.case("condensed-ragged", (5, 37, 13, 11), 88, 8, 9),
    "condensed-wide": condensed.case("condensed-wide", (8, 576, 8, 8), 384, 2, 200),
}
CASES |= {f"native-{name}": case for name, case in CASES.items() if name.startswith("condensed")}
# Evaluations by the native kernels: in shared memory, in bands of rows, with cells of the paths' own.
EVALUATIONS = {
    "whole": blocks.case("whole", (8, 32, 8, 8), 6, 2, 24, **BLOCK, running=True),
    "bands": blocks.case("bands", (8, 16, 56, 56), 3, 2, 24, **BLOCK, running=True, bias=True),
    "large": blocks.case("large", (70, 16, 28, 28), 3, 2, 24, **BLOCK, running=True),
    "odd": blocks.case("odd", (9, 12, 7, 7), 4, 4, 16, groups=2, pairing="butterfly", running=True),
    "rsdc": blocks.case("rsdc", (8, 16, 17, 19), 3, 2, 16, **BLOCK, kernel_size=5, sets=1, running=True),
    "filters": blocks.case("filters", (8, 16, 9, 9), 3, 2, 16, groups=2, kernel_size=5, sets=8, running=True),
}


@pytest.fixture(autouse=True)
def fresh(request, seed, monkeypatch):
    """After the suite's own seed: values that no earlier run has seen. The reference computes float32 in float32."""
    torch.manual_seed(SEED)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    request.node.add_report_section("setup", "LIGHTKERNELS_TEST_SEED", str(SEED))


def sample_of(name, dtype, layout):
    made = CASES[name].build(SEED, DTYPES[dtype], layout, DEVICE)
    if name.startswith("block"):  # weights that keep values near one, so that 16 bit has no need of luck
        x, one, three, *rest = made.args
        made = made.replace([t for t in (x, one * 0.25, three * 0.1, *rest) if t is not None])
    return made.requires_grad()


def run(name, sample, g=None, definition=False):
    """The output and all gradients."""
    if definition:
        module = block_reference if name.startswith("block") else condensed_reference
        y = module.forward(*sample.args, **sample.kwargs)
    else:
        call = mldn_block if name.startswith("block") else condensed_conv2d
        if name.startswith("native") and native.load("_cuda")[0] is None:
            pytest.skip(f"no CUDA module: {native.load('_cuda')[1]}")
        y = call(*sample.args, **sample.kwargs, backend="cuda" if name.startswith("native") else BACKEND)
    return [y, *torch.autograd.grad(y, sample.tensors(), torch.ones_like(y) if g is None else g.to(y.dtype))]


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_parity_with_float64_truth(name, dtype, layout):
    sample = sample_of(name, dtype, layout)
    with torch.no_grad():
        y = (block_reference if name.startswith("block") else condensed_reference).forward(
            *sample.args, **sample.kwargs
        )
    g = torch.randn_like(y)
    truth = run(name, sample.map(lambda t: t.detach().double().requires_grad_()), g, definition=True)
    base = run(name, sample, g, definition=True)
    ours = run(name, sample, g)
    for i, (actual, want, plain) in enumerate(zip(ours, truth, base, strict=True)):
        # Gradients through norms lose what their means cancel, in an order of their own.
        assert_accurate(actual, want, plain, f"{name} {dtype} {layout} {i}", ulps=16 if i else 2)
    assert_keeps_layout(sample.args[0], ours[0])
    assert_keeps_layout(sample.args[0], ours[1])


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EVALUATIONS)
def test_native_evaluation(name, dtype, layout):
    """Parity with float64 truth, over poisoned memory; and the same bits again, on a stream and in a graph."""
    if native.load("_cuda")[0] is None:
        pytest.skip(f"no CUDA module: {native.load('_cuda')[1]}")
    made = EVALUATIONS[name].build(SEED, DTYPES[dtype], layout, DEVICE)
    x, one, three, *rest = made.args
    args = (x, one * 0.25, three * 0.1, *rest)
    kwargs = {k: v for k, v in made.kwargs.items() if k != "recompute"}

    def wide(t):
        return t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t

    with torch.no_grad():
        with poisoned():
            y = mldn_block(*args, **kwargs, backend="cuda")
        truth = block_reference.forward(*map(wide, args), **{k: wide(v) for k, v in kwargs.items()})
        assert_accurate(y, truth, block_reference.forward(*args, **kwargs), f"{name} {dtype} {layout}", ulps=4)
        assert_keeps_layout(x, y)
        side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            again = mldn_block(*args, **kwargs, backend="cuda")
        torch.cuda.current_stream().wait_stream(side)
        assert_same_bits(again, y)
        with torch.cuda.graph(graph):
            captured = mldn_block(*args, **kwargs, backend="cuda")
        captured.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        assert_same_bits(captured, y)


@pytest.mark.parametrize("name", ["block", "block-large", "condensed", "native-condensed"])
def test_poisoned_memory_does_not_show_and_results_repeat(name):
    sample = sample_of(name, "bf16", "nhwc")
    due = run(name, sample)
    for _ in range(3):
        with poisoned():
            again = run(name, sample)
        for a, b in zip(again, due, strict=True):
            assert_same_bits(a, b)


@pytest.mark.parametrize("name", ["block", "block-rsdc", "condensed", "native-condensed"])
def test_cuda_graph_capture_and_replay(name):
    sample = sample_of(name, "bf16", "nhwc")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run(name, sample)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(name, sample)
    with torch.no_grad():
        sample.args[0].copy_(torch.randn_like(sample.args[0]))
        for t in captured:
            t.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    for a, b in zip(captured, run(name, sample), strict=True):
        assert_same_bits(a, b)


def test_nan_stays_nan():
    """A ReLU does not swallow it, in evaluation either."""
    sample = sample_of("block-running", "fp32", "nchw")
    with torch.no_grad():
        sample.args[0][0, 0, 3, 3] = float("nan")
        y = mldn_block(*sample.args, **sample.kwargs, backend=BACKEND)
        due = block_reference.forward(*sample.args, **sample.kwargs)
    assert torch.equal(y.isnan(), due.isnan())
    assert int(y.isnan().sum()) > 1

"""rsdc2d on a GPU: compiled kernels against float64 truth, graphs, slices, more than 2^31 elements; as test_gpu.py."""

from __future__ import annotations

import os
import random
import sys

import pytest
import torch

import lightkernels
from lightkernels import rsdc2d
from lightkernels._core import native
from lightkernels._core.taps import draw
from lightkernels.ops.rsdc2d import reference
from lightkernels.testing import assert_accurate, assert_keeps_layout, assert_same_bits, poisoned

pytestmark = pytest.mark.gpu

DEVICE, BACKEND = "cuda", "triton"
BACKENDS = ("triton", "cuda")
SEED = int(os.environ.get("LIGHTKERNELS_TEST_SEED") or random.SystemRandom().randrange(2**31))
DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16, "fp16": torch.float16}
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
# name: shape, filters, kernel size, taps, scope, keyword arguments
CASES = {
    "layer": ((4, 64, 28, 28), 64, 5, 9, "layer", {}),
    "layer-ragged": ((3, 40, 13, 9), 72, 7, 11, "layer", {}),
    "layer-stride": ((2, 48, 30, 28), 80, 5, 9, "layer", {"stride": 2}),
    "layer-dilated": ((2, 32, 20, 23), 16, 3, 5, "layer", {"dilation": (2, 3), "stride": (1, 2), "padding": (1, 4)}),
    "layer-wide": ((2, 256, 14, 14), 320, 5, 9, "layer", {}),
    "image": ((4, 3, 32, 32), 64, 7, 9, "layer", {"stride": 2}),
    "group": ((4, 96, 16, 16), 64, 5, 9, "group", {"groups": 2}),
    "group-stride": ((2, 24, 15, 14), 36, 5, 9, "group", {"groups": 3, "stride": 3}),
    "mldn": ((4, 32, 32, 32), 8, 5, 9, "filter", {"groups": 8}),
    "depthwise": ((3, 65, 15, 17), 65, 7, 9, "filter", {"groups": 65}),
    "tiny-groups": ((2, 20, 14, 9), 30, 5, 9, "filter", {"groups": 10, "stride": 2}),
    "one-pixel": ((3, 16, 1, 1), 16, 3, 9, "layer", {}),
}


@pytest.fixture(autouse=True, params=BACKENDS)
def fresh(request, seed, monkeypatch):
    """After the suite's own seed: values that no earlier run has seen. The reference computes float32 in float32."""
    if request.param == "cuda" and native.load("_cuda")[0] is None:
        pytest.skip(f"no CUDA module: {native.load('_cuda')[1]}")
    monkeypatch.setattr(sys.modules[__name__], "BACKEND", request.param)
    torch.manual_seed(SEED)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    request.node.add_report_section("setup", "LIGHTKERNELS_TEST_SEED", str(SEED))


def inputs(name, dtype, layout):
    """x, weight, taps, bias, and the keyword arguments; all but the taps require gradients."""
    shape, filters, k, count, scope, kwargs = CASES[name]
    groups = kwargs.get("groups", 1)
    sets = {"layer": 1, "group": groups, "filter": filters}[scope]

    def values(*size):
        return torch.randn(size, device=DEVICE, dtype=torch.float64).to(DTYPES[dtype])

    x = values(*shape).contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    weight = values(filters, shape[1] // groups, count).requires_grad_()
    return (
        x,
        weight,
        draw(sets, count, k, device=DEVICE),
        values(filters).requires_grad_(),
        {"kernel_size": k, **kwargs},
    )


def run(x, weight, taps, bias, kwargs, g):
    y = rsdc2d(x, weight, taps, bias, **kwargs, backend=BACKEND)
    return [y, *torch.autograd.grad(y, [x, weight, bias], g.to(y.dtype))]


def upstream(x, weight, taps, bias, kwargs):
    with torch.no_grad():
        return torch.randn_like(reference.forward(x, weight, taps, bias, **kwargs))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_parity_with_float64_truth(name, dtype, layout):
    x, weight, taps, bias, kwargs = inputs(name, dtype, layout)
    x6, w6, b6 = (t.detach().double().requires_grad_() for t in (x, weight, bias))
    truth = reference.forward(x6, w6, taps, b6, **kwargs)
    g = torch.randn_like(truth).to(x.dtype)
    truths = [truth, *torch.autograd.grad(truth, [x6, w6, b6], g.double())]
    y = reference.forward(x, weight, taps, bias, **kwargs)
    base = [y, *torch.autograd.grad(y, [x, weight, bias], g)]
    ours = run(x, weight, taps, bias, kwargs, g)
    for label, actual, want, plain in zip(("y", "dx", "dw", "dbias"), ours, truths, base, strict=True):
        assert_accurate(actual, want, plain, f"{name} {dtype} {layout} {label}")
    assert_keeps_layout(x, ours[0])
    assert_keeps_layout(x, ours[1])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_float32_by_tf32_is_as_good_as_cudnn_s(layout, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    x, weight, taps, bias, kwargs = inputs("layer", "fp32", layout)
    truth = reference.forward(*(t.double() for t in (x, weight)), taps, bias.double(), **kwargs)
    error = (rsdc2d(x, weight, taps, bias, **kwargs, backend=BACKEND).double() - truth).norm() / truth.norm()
    assert error < 2**-10


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["layer-ragged", "mldn"])
def test_poisoned_memory_does_not_show_and_gradients_repeat(name, layout):
    args = inputs(name, "bf16", layout)
    g = upstream(*args)
    stale = [torch.full_like(g, float("nan")) for _ in range(8)]
    del stale  # what the caching allocator hands out next was NaN
    with poisoned():
        first = run(*args, g)
    assert all(bool(torch.isfinite(t).all()) for t in first)
    for _ in range(5):
        for i, (a, b) in enumerate(zip(run(*args, g), first, strict=True)):
            assert_same_bits(a, b, f"result {i}")


@pytest.mark.parametrize("name", ["layer", "layer-stride", "mldn"])
def test_cuda_graph_capture_and_replay(name):
    args = inputs(name, "bf16", "nhwc")
    x, weight, taps, bias, kwargs = args
    g = upstream(*args)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run(*args, g)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(*args, g)
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
        taps.copy_(draw(*taps.shape, kwargs["kernel_size"], device=DEVICE))
        for t in captured:
            t.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    for a, b in zip(captured, run(x, weight, taps, bias, kwargs, g), strict=True):
        assert_same_bits(a, b)


def test_slices_are_read_in_place():
    x, weight, taps, bias, kwargs = inputs("layer", "bf16", "nhwc")
    whole = torch.randn(4, 96, 28, 28, device=DEVICE, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    part = whole[:, 16:80]
    part.copy_(x.detach())
    with torch.no_grad():
        due = rsdc2d(x, weight, taps, bias, **kwargs, backend=BACKEND)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        y = rsdc2d(part, weight, taps, bias, **kwargs, backend=BACKEND)
        room = torch.cuda.max_memory_allocated() - before
    assert_same_bits(y, due)
    assert room < (y.numel() + part.numel()) * y.element_size()


def test_more_than_2_to_31_elements():
    shape = (33, 64, 1024, 1024)
    free, _ = torch.cuda.mem_get_info()
    if free < 3 * 2 * 33 * 64 * 2**20:
        pytest.skip(f"{free >> 30} GiB of free device memory are too few")
    x = torch.empty(shape, device=DEVICE, dtype=torch.bfloat16, memory_format=torch.channels_last)
    for image in x:
        image.copy_(torch.randn(image.shape, device=DEVICE, dtype=torch.bfloat16))
    w, taps = torch.randn(64, 64, 9, device=DEVICE, dtype=torch.bfloat16), draw(1, 9, 5, device=DEVICE)
    y = rsdc2d(x, w, taps, kernel_size=5, backend=BACKEND)
    for i in (0, 32):
        one = x[i : i + 1].clone(memory_format=torch.channels_last)
        assert_same_bits(y[i : i + 1], rsdc2d(one, w, taps, kernel_size=5, backend=BACKEND), f"image {i}")


def test_automatic_choice():
    x, weight, taps, bias, kwargs = inputs("layer", "bf16", "nhwc")
    told = lightkernels.explain("rsdc2d", x, weight, taps, bias, **kwargs)
    timed = [n for n in ("cuda", "triton") if told.reasons.get(n, "") is None and n not in told.passed]
    assert told.chosen == (timed or ["torch"])[0]
    taps = draw(64, 9, 5, device=DEVICE)
    assert lightkernels.explain("rsdc2d", x, weight, taps, bias, **kwargs).chosen == "torch"

"""What only a GPU can show: compiled kernels against float64 truth, streams, graphs, devices, more than 2^31 elements.

Inputs are new in every run; a failure prints its seed, and LIGHTKERNELS_TEST_SEED repeats it. Without a CUDA device
every test here is skipped, and the count says how many.
"""

from __future__ import annotations

import os
import random
import sys

import pytest
import torch

import lightkernels
from lightkernels._core import native
from lightkernels.ops.multi_dwconv2d import reference
from lightkernels.testing import assert_accurate, assert_keeps_layout, assert_same_bits, poisoned

pytestmark = pytest.mark.gpu

DEVICE, BACKEND = "cuda", "triton"
BACKENDS = ("triton", "cuda")
SEED = int(os.environ.get("LIGHTKERNELS_TEST_SEED") or random.SystemRandom().randrange(2**31))
DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16, "fp16": torch.float16}
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
# name: shape, kernels, keyword arguments
CASES = {
    "concat": ((4, 24, 32, 32), (3, 5, 7), {}),
    "concat-ragged": ((3, 5, 13, 9), (3, 5, 7), {}),
    "concat-stride": ((2, 12, 30, 28), (3, 5, 7), {"stride": 2}),
    "add": ((4, 40, 16, 16), (3, 5, 7), {"combine": "add"}),
    "add-dilated": ((2, 9, 20, 23), (3, 3), {"combine": "add", "dilations": (1, 3)}),
    "cumulative": ((2, 16, 17, 33), (3, 3, 5), {"combine": "cumulative", "dilations": (1, 2, 1)}),
    "split": ((3, 11, 14, 14), (3, 5, 7), {"split": True}),
    "single-3": ((2, 65, 56, 57), (3,), {}),
    "single-7": ((5, 33, 7, 7), (7,), {}),
    "single-11": ((1, 8, 24, 40), (11,), {}),
    "one-pixel": ((3, 4, 1, 1), (3, 5), {}),
    "tiles": ((5, 2, 70, 37), (3, 5, 7), {}),
    "tiles-odd": ((1, 34, 37, 45), (7,), {}),
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


def inputs(name, dtype, layout, device=None):
    """x, weights and bias, requiring gradients, and the keyword arguments."""
    shape, kernels, kwargs = CASES[name]
    c, count = shape[1], len(kernels)
    parts = [c - c // count * (count - 1)] + [c // count] * (count - 1) if kwargs.get("split") else [c] * count
    c_out = c if kwargs.get("combine") == "add" else sum(parts)

    def draw(*size):
        return torch.randn(size, device=device or DEVICE, dtype=torch.float64).to(DTYPES[dtype])

    x = draw(*shape).contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    weights = [draw(m, 1, k, k).requires_grad_() for m, k in zip(parts, kernels, strict=True)]
    return x, weights, draw(c_out).requires_grad_(), kwargs


def wide(t):
    return t.detach().double().requires_grad_()


def run(x, weights, bias, kwargs, g):
    y = lightkernels.multi_dwconv2d(x, weights, bias, **kwargs, backend=BACKEND)
    return [y, *torch.autograd.grad(y, [x, *weights, bias], g.to(y.dtype))]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_parity_with_float64_truth(name, dtype, layout):
    x, weights, bias, kwargs = inputs(name, dtype, layout)
    x6, w6, b6 = wide(x), [wide(w) for w in weights], wide(bias)
    truth = reference.forward(x6, w6, b6, **kwargs)
    g = torch.randn_like(truth).to(x.dtype)
    truths = [truth, *torch.autograd.grad(truth, [x6, *w6, b6], g.double())]
    y = reference.forward(x, weights, bias, **kwargs)
    base = [y, *torch.autograd.grad(y, [x, *weights, bias], g)]
    ours = run(x, weights, bias, kwargs, g)
    labels = ["y", "dx", *(f"dw{i}" for i in range(len(weights))), "dbias"]
    for label, actual, want, plain in zip(labels, ours, truths, base, strict=True):
        assert_accurate(actual, want, plain, f"{name} {dtype} {layout} {label}")
    assert_keeps_layout(x, ours[0])
    assert_keeps_layout(x, ours[1])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_poisoned_memory_does_not_show(dtype, layout):
    x, weights, bias, kwargs = inputs("concat", dtype, layout)
    g = torch.randn(4, 72, 32, 32, device=DEVICE)
    stale = [torch.full_like(g, float("nan")) for _ in range(8)]
    del stale  # what the caching allocator hands out next was NaN
    with poisoned():
        for t in run(x, weights, bias, kwargs, g):
            assert torch.isfinite(t).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_weight_gradients_are_equal_from_run_to_run(dtype, layout):
    x, weights, bias, kwargs = inputs("concat", dtype, layout)
    g = torch.randn(4, 72, 32, 32, device=DEVICE)
    first = run(x, weights, bias, kwargs, g)
    for _ in range(5):
        for i, (a, b) in enumerate(zip(run(x, weights, bias, kwargs, g), first, strict=True)):
            assert_same_bits(a, b, f"result {i}")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_side_stream(layout):
    x, weights, bias, kwargs = inputs("concat", "bf16", layout)
    g = torch.randn(4, 72, 32, 32, device=DEVICE)
    due = run(x, weights, bias, kwargs, g)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(20_000_000)  # work on another stream would overtake this
        late = (x * 2) / 2
        found = run(late.detach().requires_grad_(), weights, bias, kwargs, g)
    torch.cuda.current_stream().wait_stream(side)
    for a, b in zip(found, due, strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_cuda_graph_capture_and_replay(dtype, layout):
    x, weights, bias, kwargs = inputs("concat", dtype, layout)
    g = torch.randn(4, 72, 32, 32, device=DEVICE).to(x.dtype)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run(x, weights, bias, kwargs, g)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(x, weights, bias, kwargs, g)
    for _ in range(2):
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
            weights[1].copy_(torch.randn_like(weights[1]))
            for t in captured:
                t.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        for a, b in zip(captured, run(x, weights, bias, kwargs, g), strict=True):
            assert_same_bits(a, b)


def test_a_second_device_is_used_whatever_the_current_one_is():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    x, weights, bias, kwargs = inputs("concat", "bf16", "nchw", "cuda:1")
    g = torch.randn(4, 72, 32, 32, device="cuda:1")
    assert torch.cuda.current_device() == 0
    found = run(x, weights, bias, kwargs, g)
    with torch.cuda.device(1):
        due = run(x, weights, bias, kwargs, g)
    for a, b in zip(found, due, strict=True):
        assert a.device.index == 1
        assert_same_bits(a, b)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_more_than_2_to_31_elements(layout):
    shape = (33, 64, 1024, 1024)
    need = 5 * 2 * 33 * 64 * 1024 * 1024
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if free < need:
        pytest.skip(f"needs {need >> 30} GiB of free device memory, {free >> 30} are there")
    fmt = LAYOUTS[layout]
    x = torch.empty(shape, device=DEVICE, dtype=torch.bfloat16, memory_format=fmt)
    for image in x:
        image.copy_(torch.randn(image.shape, device=DEVICE, dtype=torch.bfloat16))
    w = torch.randn(64, 1, 3, 3, device=DEVICE, dtype=torch.bfloat16)
    op = lightkernels.multi_dwconv2d
    y = op(x, [w], backend=BACKEND)
    last, first = x[-1:].clone(memory_format=fmt), x[:1].clone(memory_format=fmt)
    assert_same_bits(y[-1:], op(last, [w], backend=BACKEND), "last image")
    assert_same_bits(y[:1], op(first, [w], backend=BACKEND), "first image")
    args = ([3], [64], [1, 1], [1], "concat", False)
    gx = torch.ops.lightkernels.multi_dwconv2d_bwd_x(y, w.flatten(), shape, layout == "nhwc", *args, backend=BACKEND)
    one = torch.ops.lightkernels.multi_dwconv2d_bwd_x(
        y[-1:].clone(memory_format=fmt), w.flatten(), (1, *shape[1:]), layout == "nhwc", *args, backend=BACKEND
    )
    assert_same_bits(gx[-1:], one, "last image's gradient")
    del gx, one
    gw = torch.ops.lightkernels.multi_dwconv2d_bwd_w(y, x, *args, backend=BACKEND)
    total = torch.zeros(64, 3, 3, device=DEVICE, dtype=torch.float64)
    for image, grad in zip(x, y, strict=True):
        padded = torch.nn.functional.pad(image.float(), (1, 1, 1, 1))
        for u in range(3):
            for v in range(3):
                seen = padded[:, u : u + 1024, v : v + 1024]
                total[:, u, v] += (seen * grad).sum((1, 2), dtype=torch.float64)
    error = (gw.view(64, 3, 3).double() - total).norm() / total.norm()
    assert error < 2**-7


def test_torch_compile_fullgraph_matches_eager():
    x, weights, bias, kwargs = inputs("concat", "bf16", "nhwc")
    g = torch.randn(4, 72, 32, 32, device=DEVICE).to(x.dtype)

    def model(x, *weights):
        return torch.nn.functional.silu(lightkernels.multi_dwconv2d(x, weights, bias, **kwargs))

    due = model(x, *weights)
    found = torch.compile(model, fullgraph=True)(x, *weights)
    torch.testing.assert_close(found, due, rtol=2**-7, atol=2**-7)
    grads = [torch.autograd.grad(y, [x, *weights], g) for y in (found, due)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=2**-5, atol=2**-5 * float(b.abs().max()))


def test_autocast():
    x, weights, bias, kwargs = inputs("concat", "fp32", "nchw")
    with torch.autocast(DEVICE, torch.bfloat16):
        y = lightkernels.multi_dwconv2d(x, weights, bias, **kwargs)
    assert y.dtype is torch.bfloat16
    due = lightkernels.multi_dwconv2d(x.bfloat16(), [w.bfloat16() for w in weights], bias.bfloat16(), **kwargs)
    assert_same_bits(y, due)
    gradients = torch.autograd.grad(y.float().sum(), [x, *weights, bias])
    assert all(g.dtype is torch.float32 for g in gradients)


def test_slices_are_read_in_place():
    x, weights, bias, kwargs = inputs("concat", "bf16", "nhwc")
    whole = torch.randn(4, 64, 32, 32, device=DEVICE, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    part = whole[:, 20:44]
    part.copy_(x.detach())
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with torch.no_grad():
        y = lightkernels.multi_dwconv2d(part, weights, bias, **kwargs, backend=BACKEND)
        room = torch.cuda.max_memory_allocated() - before
        due = lightkernels.multi_dwconv2d(x, weights, bias, **kwargs, backend=BACKEND)
    assert_same_bits(y, due)
    assert room < y.numel() * y.element_size() + part.numel() * part.element_size()


def test_automatic_choice_is_a_kernel_that_was_timed():
    x, weights, bias, kwargs = inputs("concat", "bf16", "nchw")
    told = lightkernels.explain("multi_dwconv2d", x, weights, bias, **kwargs)
    timed = [n for n in ("cuda", "triton") if told.reasons.get(n, "") is None and n not in told.passed]
    assert told.chosen == (timed or ["torch"])[0]


def test_tensors_on_two_devices_are_an_error():
    x, weights, bias, kwargs = inputs("concat", "bf16", "nchw")
    with pytest.raises(ValueError, match=r"weights\[0\] must be on x's device cuda:0; got .* cpu\)"):
        lightkernels.multi_dwconv2d(x, [weights[0].cpu(), *weights[1:]], bias, **kwargs)


def test_the_cuda_module_has_code_for_this_device():
    module, reason = native.load("_cuda")
    if module is None:
        pytest.skip(f"no CUDA module: {reason}")
    assert module.device_count() == torch.cuda.device_count()
    major, minor = torch.cuda.get_device_capability(0)
    assert 0 < module.image_arch(0) <= 10 * major + minor

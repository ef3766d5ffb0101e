"""condensed_conv2d beside the generated tests: both activations, every number of groups, repeated channels, errors."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lightkernels
from lightkernels import condensed_conv2d
from lightkernels.ops.condensed_conv2d import OP, cases
from lightkernels.testing import assert_accurate, assert_same_bits

BACKENDS = [b for b in OP.backends if lightkernels.explain("condensed_conv2d", *cases.CASES[0].build().args,
            backend=b).chosen == b]  # fmt: skip


def literal(x, weight, index, scale, shift, activation):
    """By torch's own modules: a grouped convolution and a channel shuffle."""
    groups, kept = index.shape
    conv = nn.Conv2d(groups * kept, len(weight), 1, groups=groups, bias=False, dtype=x.dtype)
    with torch.no_grad():
        for o in range(len(weight)):
            conv.weight[o % groups * (len(weight) // groups) + o // groups] = weight[o, :, None, None]
        z = x[:, index.flatten()] * scale[:, None, None] + shift[:, None, None]
        z = F.relu(z) if activation == "relu" else F.hardswish(z)
        return nn.ChannelShuffle(groups)(conv(z))


def a_call(generator, groups, kept, each, c, size, dtype=torch.float64):
    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    index = torch.randint(c, (groups, kept), generator=generator)
    return draw(2, c, *size), draw(groups * each, kept), index, draw(groups * kept), draw(groups * kept) * 2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ["relu", "hardswish"])
def test_any_groups_and_sizes(backend, activation):
    generator = torch.Generator().manual_seed(0)
    for groups in (1, 2, 3, 4, 6, 8, 16, 32):
        for each, kept, size in ((1, 3, (5, 7)), (3, 1, (1, 1)), (7, 5, (9, 9)), (17, 2, (2, 3))):
            sample = a_call(generator, groups, kept, each, 11, size)
            due = literal(*sample, activation)
            for form in (torch.contiguous_format, torch.channels_last):
                x, *rest = sample
                y = condensed_conv2d(x.contiguous(memory_format=form), *rest, activation=activation, backend=backend)
                torch.testing.assert_close(y, due, rtol=1e-12, atol=1e-12, msg=f"{groups} {each} {kept} {size} {form}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_types(backend, dtype):
    generator = torch.Generator().manual_seed(1)
    for activation in ("relu", "hardswish"):
        sample = a_call(generator, 4, 19, 9, 40, (7, 9), dtype)
        wide = [t.double() if t.is_floating_point() else t for t in sample]
        single = [t.float() if t.is_floating_point() else t for t in sample]
        truth, base = literal(*wide, activation), literal(*single, activation).to(dtype)
        assert_accurate(condensed_conv2d(*sample, activation=activation, backend=backend), truth, base, ulps=2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_hardswish(backend):
    x, weight, index, scale, shift = a_call(torch.Generator().manual_seed(2), 2, 3, 2, 5, (2, 3))
    leaves = [t.requires_grad_() for t in (x, weight, scale, shift)]

    def call(x, weight, scale, shift):
        return condensed_conv2d(x, weight, index, scale, shift, activation="hardswish", backend=backend)

    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_threads_give_the_same(backend):
    sample = a_call(torch.Generator().manual_seed(3), 4, 30, 16, 60, (16, 16), torch.float32)
    before, results = torch.get_num_threads(), []
    for form in (torch.contiguous_format, torch.channels_last):
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(condensed_conv2d(sample[0].contiguous(memory_format=form), *sample[1:], backend=backend))
    torch.set_num_threads(before)
    if backend == "cpu":
        assert_same_bits(results[0], results[1])
        assert_same_bits(results[2], results[3])
    torch.testing.assert_close(results[0], results[3])


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_a_nan_reaches_what_reads_it(form):
    x, weight, index, scale, shift = a_call(torch.Generator().manual_seed(4), 4, 2, 2, 8, (3, 5), torch.float32)
    x[1, 3, 2, 1] = float("nan")
    reads = (index == 3).any(1)
    for backend in BACKENDS:
        y = condensed_conv2d(x.contiguous(memory_format=form), weight, index, scale, shift, backend=backend)
        due = torch.zeros_like(y, dtype=torch.bool)
        due[1, :, 2, 1] = reads[torch.arange(8) % 4]
        assert torch.equal(y.isnan(), due), backend


X, W, I = torch.randn(2, 8, 3, 3), torch.randn(4, 3), torch.tensor([[0, 1, 2], [5, 6, 7]])  # noqa: E741
ONE = torch.ones(6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [-1, 8])
def test_an_index_outside(backend, bad):
    with pytest.raises(IndexError if backend == "cpu" else (IndexError, RuntimeError)):
        condensed_conv2d(X, W, torch.tensor([[0, 1, 2], [5, bad, 7]]), ONE, ONE, backend=backend)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: condensed_conv2d(3, W, I, ONE, ONE), TypeError, "x must be a tensor; got 3."),
        (lambda: condensed_conv2d(X[0], W, I, ONE, ONE), ValueError, "x must have 4 dimensions [N, C, H, W]; got"),
        (lambda: condensed_conv2d(X, W.double(), I, ONE, ONE), TypeError, "weight must have x's dtype float32; got"),
        (lambda: condensed_conv2d(X.int(), W, I, ONE, ONE), TypeError, "x must be float32, float64, bfloat16 or"),
        (lambda: condensed_conv2d(X, W, I.int(), ONE, ONE), TypeError, "index must be int64; got [2, 3] (int32, cpu)."),
        (lambda: condensed_conv2d(X, W, I, ONE.long(), ONE), TypeError, "scale must be of a floating dtype; got [6]"),
        (lambda: condensed_conv2d(X, W, I[0], ONE, ONE), ValueError, "index must have shape [G, K], the K channels of"),
        (
            lambda: condensed_conv2d(X, W[:, :2], I, ONE, ONE),
            ValueError,
            "weight must have shape [out channels, 3]; got",
        ),
        (lambda: condensed_conv2d(X, W[:3], I, ONE, ONE), ValueError, "weight must have a multiple of 2 rows, the"),
        (lambda: condensed_conv2d(X, W, I, ONE, ONE[:5]), ValueError, "shift must have shape [6], a number for each"),
        (
            lambda: condensed_conv2d(X, W, I, ONE, ONE, activation="gelu"),
            ValueError,
            "activation must be one of 'relu'",
        ),
        (lambda: condensed_conv2d(X, W, I, ONE, ONE, backend="gpu"), ValueError, "backend must be one of 'auto', "),
    ],
)
def test_bad_arguments(call, error, text):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(f"condensed_conv2d: {text}")

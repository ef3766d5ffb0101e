"""rsdc2d where a 3x3 window is computed four rows at a time, and the one-pass dilated 5x5 of multi_dwconv2d."""

import pytest
import torch
import torch.nn.functional as F

from lightkernels import exact_nonfinite, explain, multi_dwconv2d, rsdc2d, use_backend
from lightkernels._core import native
from lightkernels.functional import rsdc2d_moments

WORDS = "by fours"


def fast() -> bool:
    module = native.load("_C")[0]
    return module is not None and module.isa() != "baseline"


def dense(weight, cells):
    """The 3x3 filters, in float64."""
    full = torch.zeros(*weight.shape[:2], 9, dtype=torch.float64)
    for o in range(len(weight)):
        full[o, :, cells[o * len(cells) // len(weight)]] = weight[o].double()
    return full.unflatten(2, (3, 3))


def error(found, due):
    return float((found.double() - due).norm() / due.norm())


# Channels in and out, groups, height, width: of each width of vectors, tiles that are full and not, more than one sum.
SHAPES = [(8, 8, 2, 9, 16), (16, 8, 1, 3, 8), (4, 4, 1, 32, 32), (40, 8, 1, 5, 24), (8, 16, 2, 6, 48), (32, 4, 1, 8, 8)]


@pytest.mark.skipif(not fast(), reason="the instruction set has no such kernels")
@pytest.mark.parametrize("sets", ["one", "of filters"])
@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_and_input_gradients(shape, sets):
    ci, co, groups, h, w = shape
    count = co if sets == "of filters" else 1
    cells = torch.stack([torch.randperm(9)[: 8 if count > 1 else 9] for _ in range(count)])
    x, weight = torch.randn(5, ci, h, w), torch.randn(co, ci // groups, cells.shape[1])
    bias = torch.randn(co)
    assert WORDS in str(explain(rsdc2d, x, weight, cells, bias, kernel_size=3, groups=groups))
    x.requires_grad_()
    y = rsdc2d(x, weight, cells, bias, kernel_size=3, groups=groups, backend="cpu")
    g = torch.randn_like(y)
    (gx,) = torch.autograd.grad(y, x, g)
    xd = x.detach().double().requires_grad_()
    due = F.conv2d(xd, dense(weight, cells), bias.double(), padding=1, groups=groups)
    (due_gx,) = torch.autograd.grad(due, xd, g.double())
    assert error(y.detach(), due.detach()) < 6e-7
    assert error(gx, due_gx) < 6e-7


@pytest.mark.skipif(not fast(), reason="the instruction set has no such kernels")
@pytest.mark.parametrize("shuffled", [1, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_sums_over_outputs_that_are_not_stored(shape, shuffled):
    ci, co, groups, h, w = shape
    cells = torch.arange(9)[None]
    # A mean of many deviations, which must not cost the variance's digits.
    x, weight = torch.randn(11, ci, h, w) + 4, torch.randn(co, ci // groups, 9)
    g = torch.randn(11, co, h, w)
    found = rsdc2d_moments(x, weight, cells, g, groups=groups, shuffled=shuffled)
    assert found is not None
    y = F.conv2d(x.double(), dense(weight, cells), padding=1, groups=groups).transpose(0, 1).flatten(1)
    order = torch.arange(co).view(shuffled, -1).t().flatten()
    e = torch.empty_like(g).index_copy_(1, order, g).double().transpose(0, 1).flatten(1)
    mean = y.mean(1, keepdim=True)
    due = torch.stack([mean[:, 0], y.var(1, correction=0), e.sum(1), (e * (y - mean)).sum(1)])
    torch.testing.assert_close(found[:3], due[:3], rtol=3e-5, atol=1e-4)
    assert float((found[3] - due[3]).abs().max()) < 1e-5 * float(((y - mean).norm(dim=1) * e.norm(dim=1)).max())
    again = rsdc2d_moments(x, weight, cells, g, groups=groups, shuffled=shuffled)
    assert again is not None and torch.equal(again, found)
    with exact_nonfinite():
        assert rsdc2d_moments(x, weight, cells, g, groups=groups) is None
    with use_backend("torch"):
        assert rsdc2d_moments(x, weight, cells, g, groups=groups) is None


def test_non_finite_inputs_stay_near_and_can_be_kept_exactly():
    x, weight, cells = torch.randn(2, 8, 16, 16), torch.randn(8, 8, 9), torch.arange(9)[None]
    x[1, 3, 6, 4] = torch.inf
    y = rsdc2d(x, weight, cells, kernel_size=3, backend="cpu")
    near = torch.zeros(2, 8, 16, 16, dtype=torch.bool)
    near[1, :, 4:8, 3:6] = True  # the four rows of the outputs that the definition reaches
    reached = torch.zeros_like(near)
    reached[1, :, 5:8, 3:6] = True
    assert y[~near].isfinite().all() and not y[reached].isfinite().any()
    with exact_nonfinite():
        y = rsdc2d(x, weight, cells, kernel_size=3, backend="cpu")
    assert torch.equal(~y.isfinite(), reached)


@pytest.mark.parametrize("size", [(32, 32), (16, 16), (8, 8), (5, 11)])
def test_five_rows_two_apart_exactly(size):
    x, weight = (torch.randint(-7, 8, s).float().requires_grad_() for s in ((3, 6, *size), (6, 1, 5, 5)))
    y = multi_dwconv2d(x, [weight], dilations=2, backend="cpu")
    due = F.conv2d(x, weight, padding=4, dilation=2, groups=6)
    g = torch.randint(-7, 8, y.shape).float()
    assert torch.equal(y, due)
    for mine, theirs in zip(
        torch.autograd.grad(y, (x, weight), g), torch.autograd.grad(due, (x, weight), g), strict=True
    ):
        assert torch.equal(mine, theirs)

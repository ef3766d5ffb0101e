"""multi_dwconv2d where the native kernels have code of their own for a width, and weights that nobody packed."""

import pytest
import torch

from lightkernels import exact_nonfinite, multi_dwconv2d
from lightkernels.ops.multi_dwconv2d import reference

SIZES = ((7, 7), (8, 8), (9, 9), (14, 14), (16, 16), (16, 32), (28, 28), (5, 32), (5, 20))
KERNELS = ((7,), (3,), (3, 5), (3, 5, 7), (7, 1, 7), (3, 3))


def whole(*shape: int) -> torch.Tensor:
    """Numbers whose sums of products have no rounding."""
    return torch.randint(-7, 8, shape).float()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("size", SIZES)
def test_every_width_exactly(size, kernels, layout):
    x = whole(2, 144, *size).contiguous(memory_format=layout)
    weights = [whole(144, 1, k, k) for k in kernels]
    bias = whole(144)
    combine = "add" if len(kernels) > 1 else "concat"
    due = reference.forward(x, weights, bias, combine=combine)
    assert torch.equal(multi_dwconv2d(x, weights, bias, combine=combine, backend="cpu"), due)
    x.requires_grad_()
    y = multi_dwconv2d(x, weights, bias, combine=combine, backend="cpu")
    assert torch.equal(y, due)
    g = torch.zeros_like(y).copy_(whole(*y.shape))
    mine = torch.autograd.grad(y, x, g)[0]
    theirs = torch.autograd.grad(reference.forward(x, weights, bias, combine=combine), x, g)[0]
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize("combine", ["concat", "cumulative"])
@pytest.mark.parametrize("shape", [(4, 48, 28, 28), (1, 17, 33, 20), (16, 64, 16, 16), (2, 40, 9, 48), (40, 48, 7, 7)])
def test_several_planes_of_each_exactly(shape, combine):
    """Maps of one row or several at once, of outputs that stay in the caches or go past them."""
    x, weights = whole(*shape), [whole(shape[1], 1, k, k) for k in (3, 5, 7)]
    bias = whole(3 * shape[1])
    x.requires_grad_()
    due = reference.forward(x, weights, bias, combine=combine)
    y = multi_dwconv2d(x, weights, bias, combine=combine, backend="cpu")
    assert torch.equal(y, due)
    g = whole(*y.shape)
    assert torch.equal(torch.autograd.grad(y, x, g)[0], torch.autograd.grad(due, x, g)[0])


@pytest.mark.parametrize("kernels", [(3,), (7,), (3, 5, 7)])
@pytest.mark.parametrize("size", SIZES)
def test_planes_do_not_see_each_other(size, kernels):
    """Loads may reach into the planes beside, sums may not."""
    x, weights = whole(3, 20, *size), [whole(20, 1, k, k) for k in kernels]
    x[1, 7] = float("nan")
    x[2, 0] = float("inf")
    for combine in ("concat", "add") if len(kernels) > 1 else ("concat",):
        due = reference.forward(x, weights, combine=combine)
        y = multi_dwconv2d(x, weights, combine=combine, backend="cpu")
        clean = torch.ones(3, 20, dtype=torch.bool)
        clean[1, 7] = clean[2, 0] = False
        clean = clean.repeat(1, y.shape[1] // 20)
        assert torch.equal(y[clean], due[clean]) and y[clean].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("combine", ["concat", "add", "cumulative"])
def test_weights_anywhere(combine, dtype):
    """Far from each other, not contiguous, or a fraction of an element apart."""
    x, weights = whole(2, 16, 9, 8), [whole(16, 1, k, k) for k in (3, 5, 7)]
    turned = weights[2].to(dtype).transpose(2, 3).contiguous().transpose(2, 3)
    buffer = bytearray(weights[1].numel() * dtype.itemsize + 1)
    odd = torch.frombuffer(buffer, dtype=dtype, offset=1).view_as(weights[1]).copy_(weights[1])
    for middle in (weights[1].to(dtype), odd):
        given = [weights[0].to(dtype), middle, turned]
        for order in ((0, 1, 2), (2, 0, 1)):
            due = reference.forward(x, [weights[i] for i in order], combine=combine).to(dtype)
            y = multi_dwconv2d(x.to(dtype), [given[i] for i in order], combine=combine, backend="cpu")
            assert torch.equal(y, due)


@pytest.mark.parametrize("kernels", [(7,), (3, 5, 7)])
@pytest.mark.parametrize(
    ("layout", "size"),
    [
        *((torch.channels_last, (h, 8)) for h in range(1, 10)),
        *((torch.channels_last, size) for size in ((2, 24), (11, 16), (9, 32))),
        *((torch.contiguous_format, size) for size in ((8, 9), (16, 14), (8, 16), (24, 24), (8, 40))),
    ],
)
def test_rows_by_two(layout, size, kernels):
    """Any height, and 7x7 kernels whose rows share products: sums keep to the rounding of the definition."""
    x = torch.randn(2, 32, *size).contiguous(memory_format=layout)
    weights, bias = [torch.randn(32, 1, k, k) for k in kernels], torch.randn(32)
    due = reference.forward(x.double(), [w.double() for w in weights], bias.double(), combine="add")
    y = multi_dwconv2d(x, weights, bias, combine="add", backend="cpu")
    assert (y - due).abs().max() <= 1e-5 * due.abs().max()
    x.requires_grad_()
    g = torch.randn_like(due).float().contiguous(memory_format=layout)
    mine = torch.autograd.grad(multi_dwconv2d(x, weights, combine="add", backend="cpu"), x, g)[0]
    flipped = [w.double().flip(2, 3) for w in weights]
    due = reference.forward(g.double(), flipped, combine="add")
    assert (mine - due).abs().max() <= 1e-5 * due.abs().max()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_spreads_no_further_than_by_the_definition(value, layout):
    for row in range(16):
        x = torch.randn(1, 16, 16, 16).contiguous(memory_format=layout)
        x[0, 3, row, 6] = value
        due = torch.ones(1, 16, 16, 16, dtype=torch.bool)
        due[0, 3, max(row - 3, 0) : row + 4, 3:10] = False
        y = multi_dwconv2d(x, [torch.randn(16, 1, 7, 7)], backend="cpu")
        assert torch.equal(y.isfinite(), due)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(8, 8), (16, 16), (24, 32), (16, 12)])
def test_products_can_be_kept_apart(size, layout):
    x, weight = whole(2, 32, *size).contiguous(memory_format=layout), whole(32, 1, 7, 7).abs() + 1
    with exact_nonfinite():
        assert torch.equal(multi_dwconv2d(x, [weight], backend="cpu"), reference.forward(x, [weight]))
        x[1, 3, 4, 6] = float("inf")
        assert torch.equal(multi_dwconv2d(x, [weight], backend="cpu"), reference.forward(x, [weight]))

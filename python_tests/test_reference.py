"""The definition stands on PyTorch's own convolutions: where one of them is known to be wrong, it must not."""

import pytest
import torch

from lightkernels import multi_dwconv2d
from lightkernels._core.spec import TensorMeta
from lightkernels.ops.multi_dwconv2d import reference
from lightkernels.ops.multi_dwconv2d.op import Spec
from lightkernels.testing import Draw, rms

SHAPES = ((2, 3, 3, 4), (1, 5, 7, 1), (3, 17, 4, 3), (2, 8, 9, 5))
STRIDES = ((7, 7), (1, 7), (2, 5))
KERNELS = (3, 5, 7)


def leave_junk():
    """Large values in the small blocks that the allocator hands out next."""
    for size in (27, 64, 75, 100, 128, 256, 1000, 5000):
        torch.full((size,), 6e4, dtype=torch.bfloat16)


@pytest.mark.parametrize("stride", STRIDES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_weight_gradient_of_one_output_column_in_bfloat16(shape, stride):
    channels = shape[1]
    for seed in range(12):
        draw = Draw(seed, torch.bfloat16, "nhwc")
        x, weights = draw.image(*shape), [draw.tensor(channels, 1, k, k).requires_grad_() for k in KERNELS]
        leave_junk()
        y = reference.forward(x, weights, stride=stride)
        assert y.dtype is torch.bfloat16 and y.shape[-1] == 1
        g = draw.image(*y.shape)
        leave_junk()
        found = torch.autograd.grad(y, weights, g)
        wide = [w.detach().double().requires_grad_() for w in weights]
        truth = torch.autograd.grad(reference.forward(x.double(), wide, stride=stride), wide, g.double())
        args = (list(KERNELS), [channels] * 3, list(stride), [1] * 3, "concat", False)
        spec = Spec.of(TensorMeta.of(x), None, None, *args)
        leave_junk()
        packed = reference.bwd_w(spec, g, x)
        for what, dw in (("autograd", found), ("bwd_w", reference.branch_weights(spec, packed))):
            for branch, (a, t) in enumerate(zip(dw, truth, strict=True)):
                assert a.dtype is torch.bfloat16
                assert rms(a.double() - t) <= 2.0**-8 * rms(t), f"{what}, branch {branch}, seed {seed}"


@pytest.mark.parametrize("shape", [(2, 0, 5, 5), (2, 3, 0, 5), (2, 3, 5, 0)])
@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_no_channels_rows_or_columns(shape, backend):
    """PyTorch's convolutions take none of these; every backend that is chosen by itself does, alike."""
    x = torch.randn(shape, requires_grad=True)
    weights = [torch.randn(shape[1], 1, k, k, requires_grad=True) for k in (3, 5)]
    bias = torch.randn(2 * shape[1], requires_grad=True)
    y = multi_dwconv2d(x, weights, bias, stride=2, backend=backend)
    n, c, h, w = shape
    assert y.shape == (n, 2 * c, (h + 1) // 2, (w + 1) // 2)
    gx, *gw = torch.autograd.grad(y.sum(), [x, *weights, bias])
    assert gx.shape == shape
    assert all(g.shape == t.shape and not g.any() for g, t in zip(gw, [*weights, bias], strict=True))

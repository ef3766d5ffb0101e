"""DepthwiseSeparable2d and Multiception2d: structure, stride_at, options."""

import copy
import pickle

import pytest
import torch
from torch import nn

from lightkernels.nn import DepthwiseSeparable2d, Multiception2d, MultiDepthwiseConv2d


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def warm(layer, x):
    """A few training steps, so that the norms' statistics are no longer their initial ones."""
    for _ in range(3):
        layer(x + torch.randn_like(x))
    return layer.eval()


def test_multiception_is_its_four_children():
    layer = Multiception2d(8, 16, stride=2)
    assert [name for name, _ in layer.named_children()] == ["depthwise", "norm1", "pointwise", "norm2"]
    assert isinstance(layer.depthwise, MultiDepthwiseConv2d)
    assert layer.depthwise.stride == (1, 1)
    assert layer.pointwise.stride == (2, 2)
    assert layer.pointwise.bias is not None
    assert layer.depthwise.bias is None
    x = torch.randn(2, 8, 9, 10)
    warm(layer, x)
    separate = torch.cat([branch(x) for branch in layer.depthwise.branches], 1)
    expected = layer.norm2(layer.pointwise(layer.norm1(separate)))
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernels", [(3, 5, 7), (3, 5), (3, 3), (3,)])
def test_multiception_parameters(kernels):
    inputs, outputs, branches = 12, 20, len(kernels)
    layer = Multiception2d(inputs, outputs, kernels, device="meta")
    taps = sum(k * k for k in kernels)
    expected = inputs * taps + 2 * inputs * branches + inputs * branches * outputs + outputs + 2 * outputs
    assert sum(p.numel() for p in layer.parameters()) == expected


@pytest.mark.parametrize("size", [(9, 9), (8, 10)])
def test_stride_at_is_the_same_function_in_evaluation_only(size):
    late = Multiception2d(4, 6, stride=2).double()
    early = Multiception2d(4, 6, stride=2, stride_at="depthwise").double()
    x = torch.randn(3, 4, *size, dtype=torch.float64)
    warm(late, x)
    early.load_state_dict(late.state_dict())
    early.eval()
    torch.testing.assert_close(early(x), late(x), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(early.train()(x), late.train()(x), rtol=1e-3, atol=1e-3)


BLOCKS = {
    "dsconv": ({"pointwise_bias": True, "mid_norm": False}, ["depthwise", "pointwise", "norm2"]),
    "mobilenetv2": ({"mid_act": "relu6"}, ["depthwise", "norm1", "act1", "pointwise", "norm2"]),
    "mixconv": ({"kernel_sizes": (3, 5, 7), "split": True}, ["depthwise", "norm1", "pointwise", "norm2"]),
    "pyd": (
        {"kernel_sizes": (3, 5, 7), "combine": "add", "mid_act": "relu"},
        ["depthwise", "norm1", "act1", "pointwise", "norm2"],
    ),
    "pyramid": (
        {"kernel_sizes": (3, 3, 3), "dilations": (1, 2, 3), "mid_act": "prelu", "out_act": nn.PReLU},
        ["depthwise", "norm1", "act1", "pointwise", "norm2", "act2"],
    ),
    "bare": ({"mid_norm": False, "out_norm": False}, ["depthwise", "pointwise"]),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_what_was_asked_for(name):
    options, children = BLOCKS[name]
    block = DepthwiseSeparable2d(9, 12, stride=2, **options)
    assert [child for child, _ in block.named_children()] == children
    x = torch.randn(2, 9, 7, 8)
    warm(block, x)
    expected = x
    for child in block.children():
        expected = child(expected)
    y = block(x)
    assert torch.equal(y, expected)
    assert y.shape == (2, 12, 4, 4)
    block.train()(x).square().sum().backward()
    assert all(p.grad is not None for p in block.parameters())
    twin = pickle.loads(pickle.dumps(copy.deepcopy(block))).eval()
    twin.load_state_dict(block.state_dict())
    assert torch.equal(twin(x), block.eval()(x))


def test_prelu_has_a_slope_a_channel():
    block = DepthwiseSeparable2d(4, 6, (3, 3), mid_act="prelu", out_act="prelu")
    assert (block.act1.weight.numel(), block.act2.weight.numel()) == (8, 6)


def test_unbatched_without_norms():
    block = DepthwiseSeparable2d(4, 6, mid_norm=False, out_norm=False)
    x = torch.randn(4, 5, 5)
    torch.testing.assert_close(block(x), block(x[None])[0])


def test_device_and_dtype():
    for make in (Multiception2d, DepthwiseSeparable2d):
        layer = make(4, 6, device="meta", dtype=torch.float64)
        assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.float64)}
    block = DepthwiseSeparable2d(4, 6, mid_act="prelu", device="meta", dtype=torch.float64)
    assert (block.act1.weight.device.type, block.act1.weight.dtype) == ("meta", torch.float64)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"stride_at": "both"},
            ValueError,
            "DepthwiseSeparable2d: stride_at must be one of 'depthwise', 'pointwise'; got 'both'.",
        ),
        ({"out_channels": 0}, ValueError, "DepthwiseSeparable2d: out_channels must be at least 1; got 0."),
        ({"in_channels": "4"}, TypeError, "DepthwiseSeparable2d: in_channels must be an int; got '4'."),
        (
            {"mid_act": "gelu"},
            ValueError,
            "DepthwiseSeparable2d: mid_act must be one of 'relu', 'relu6', 'prelu'; got 'gelu'.",
        ),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error) as caught:
        DepthwiseSeparable2d(**{"in_channels": 4, "out_channels": 6, **options})
    assert str(caught.value) == message


def test_errors_name_the_class_that_was_called():
    with pytest.raises(ValueError, match=r"^Multiception2d: stride_at must be one of 'depthwise', 'pointwise'; got ''"):
        Multiception2d(4, 6, stride_at="")

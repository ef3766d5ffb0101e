"""MultiDepthwiseConv2d: what a module has to keep. The arithmetic is tested with the operator."""

import copy
import pickle

import pytest
import torch
from torch import nn

from lightkernels.nn import MultiDepthwiseConv2d
from lightkernels.nn.multi_depthwise import split_channels

KINDS = [
    {},
    {"bias": True, "stride": 2},
    {"combine": "add", "bias": True},
    {"combine": "add", "dilations": (1, 2, 1), "stride": (1, 2)},
    {"combine": "cumulative", "bias": True},
    {"split": True, "bias": True},
    {"kernel_sizes": (3, 3, 3), "dilations": (1, 2, 3)},
    {"kernel_sizes": 3},
]


def layer_of(kind, **more):
    torch.manual_seed(0)
    return MultiDepthwiseConv2d(8, **{**kind, **more})


def by_branches(layer, x):
    """The layer's definition, written with its branches, which are plain convolutions."""
    parts = x.split([branch.in_channels for branch in layer.branches], 1) if layer.split else [x] * len(layer.branches)
    maps = [branch(part) for branch, part in zip(layer.branches, parts, strict=True)]
    if layer.combine == "add":
        y = torch.stack(maps).sum(0)
    elif layer.combine == "cumulative":
        y = torch.cat([torch.stack(maps[: m + 1]).sum(0) for m in range(len(maps))], 1)
    else:
        y = torch.cat(maps, 1)
    return y if layer.bias is None else y + layer.bias[:, None, None]


@pytest.mark.parametrize("kind", KINDS)
def test_is_its_branches(kind):
    layer = layer_of(kind, dtype=torch.float64)
    x = torch.randn(2, 8, 11, 10, dtype=torch.float64)
    y = layer(x)
    assert y.shape[1] == layer.out_channels
    torch.testing.assert_close(y, by_branches(layer, x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer(x[0]), y[0], rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_fold_is_the_same_function(kind):
    layer = layer_of(kind, dtype=torch.float64).eval()
    before = copy.deepcopy(layer.state_dict())
    folded = layer.fold()
    x = torch.randn(2, 8, 11, 10, dtype=torch.float64)
    torch.testing.assert_close(folded(x), layer(x), rtol=1e-12, atol=1e-12)
    assert not folded.training
    assert type(folded) is (nn.Conv2d if layer.combine == "add" else MultiDepthwiseConv2d)
    assert not {p.data_ptr() for p in folded.parameters()} & {p.data_ptr() for p in layer.parameters()}
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_fold_of_add_is_one_kernel():
    layer = layer_of({"combine": "add", "stride": 2})
    folded = layer.fold()
    assert folded.weight.shape == (8, 1, 7, 7)
    assert (folded.stride, folded.padding, folded.groups, folded.bias) == ((2, 2), (3, 3), 8, None)
    hull = layer_of({"combine": "add", "kernel_sizes": (3, 3), "dilations": (1, 3)}).fold()
    assert hull.weight.shape == (8, 1, 7, 7)
    assert hull.weight[0, 0].count_nonzero() == 17


def test_fold_forms_the_sum_in_fp32():
    layer = MultiDepthwiseConv2d(1, (1, 1, 1), combine="add", dtype=torch.float16)
    with torch.no_grad():
        for branch, value in zip(layer.branches, (2048.0, 1.0, 1.0), strict=True):
            branch.weight.fill_(value)
    assert layer.fold().weight.item() == 2050.0  # 2048 + 1 is 2048 in fp16


def test_fold_keeps_frozen_weights_frozen():
    assert not any(p.requires_grad for p in layer_of({"combine": "add"}).requires_grad_(False).fold().parameters())


def test_names_and_order():
    layer = layer_of({"bias": True})
    assert set(layer.state_dict()) == {"bias", *(f"branches.{m}.weight" for m in range(3))}
    assert [tuple(branch.weight.shape) for branch in layer.branches] == [(8, 1, k, k) for k in (3, 5, 7)]
    assert tuple(layer.bias.shape) == (24,)


def test_split_gives_the_remainder_to_the_first():
    assert split_channels(16, 3) == (6, 5, 5)
    layer = MultiDepthwiseConv2d(16, split=True)
    assert [branch.weight.shape[0] for branch in layer.branches] == [6, 5, 5]


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_deepcopy_pickle(kind):
    layer = layer_of(kind)
    x = torch.randn(1, 8, 7, 7)
    other = MultiDepthwiseConv2d(8, **kind)
    other.load_state_dict(layer.state_dict())
    for twin in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
        assert repr(twin) == repr(layer)


def test_initialised_as_conv2d_is():
    torch.manual_seed(3)
    layer = MultiDepthwiseConv2d(8)
    torch.manual_seed(3)
    for branch, size in zip(layer.branches, (3, 5, 7), strict=True):
        assert torch.equal(branch.weight, nn.Conv2d(8, 8, size, groups=8, bias=False).weight)


@pytest.mark.parametrize("combine", ["concat", "add", "cumulative"])
def test_bias_is_drawn_for_its_fan_in(combine):
    torch.manual_seed(0)
    bias = MultiDepthwiseConv2d(4096, (3, 7), combine=combine, bias=True).bias
    fans = {"concat": (9, 49), "add": (58,), "cumulative": (9, 58)}[combine]
    for part, fan in zip(bias.chunk(len(fans)), fans, strict=True):
        assert 0.99 * fan**-0.5 < part.abs().max() <= fan**-0.5


def test_reset_parameters_draws_anew():
    layer = layer_of({"bias": True})
    before = copy.deepcopy(layer.state_dict())
    layer.reset_parameters()
    assert not any(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())


def test_device_and_dtype():
    layer = MultiDepthwiseConv2d(8, bias=True, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.bfloat16)}
    x = torch.empty(2, 8, 9, 9, device="meta", dtype=torch.bfloat16)
    assert layer(x).shape == (2, 24, 9, 9)
    real = layer.to_empty(device="cpu")
    real.reset_parameters()
    assert real(torch.zeros(1, 8, 4, 4, dtype=torch.bfloat16)).isfinite().all()


def test_repr():
    assert repr(MultiDepthwiseConv2d(8)).splitlines()[0] == "MultiDepthwiseConv2d("
    text = MultiDepthwiseConv2d(8, (3, 3), dilations=(1, 2), stride=2, split=True, bias=True).extra_repr()
    expected = "8, 8, kernel_sizes=(3, 3), stride=(2, 2), dilations=(1, 2), combine='concat', split=True, bias=True"
    assert text == expected


OP = "MultiDepthwiseConv2d"


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ({"channels": 0}, ValueError, f"{OP}: channels must be at least 1; got 0."),
        ({"channels": 8.0}, TypeError, f"{OP}: channels must be an int; got 8.0."),
        ({"channels": True}, TypeError, f"{OP}: channels must be an int; got True."),
        ({"kernel_sizes": ()}, ValueError, f"{OP}: kernel_sizes must name at least one branch; got ()."),
        (
            {"kernel_sizes": (3, 4)},
            ValueError,
            f"{OP}: kernel_sizes must be odd; got (3, 4). "
            "Hint: an even kernel has no centre, so branches of different sizes would not line up.",
        ),
        (
            {"kernel_sizes": "357"},
            TypeError,
            f"{OP}: kernel_sizes must be an int or a sequence of ints; got '357'.",
        ),
        ({"kernel_sizes": (3, -1)}, ValueError, f"{OP}: kernel_sizes must be at least 1 everywhere; got (3, -1)."),
        ({"stride": 0}, ValueError, f"{OP}: stride must be at least 1; got 0."),
        ({"stride": (1, 2, 3)}, TypeError, f"{OP}: stride must be an int or a pair of ints; got (1, 2, 3)."),
        (
            {"dilations": (1, 2)},
            ValueError,
            f"{OP}: dilations must be an int or have 3 entries, one a branch; got (1, 2).",
        ),
        ({"dilations": 0}, ValueError, f"{OP}: dilations must be at least 1 everywhere; got 0."),
        ({"dilations": 1.5}, TypeError, f"{OP}: dilations must be an int or one int a branch; got 1.5."),
        (
            {"combine": "sum"},
            ValueError,
            f"{OP}: combine must be one of 'concat', 'add', 'cumulative'; got 'sum'.",
        ),
        (
            {"split": True, "combine": "add"},
            ValueError,
            f"{OP}: split must be False unless combine is 'concat'; got True. "
            "Hint: summed branches must see the same channels.",
        ),
        ({"split": "no"}, TypeError, f"{OP}: split must be a bool; got 'no'."),
        ({"bias": "no"}, TypeError, f"{OP}: bias must be a bool; got 'no'."),
        ({"channels": 2, "split": True}, ValueError, f"{OP}: channels must be at least 3 for split; got 2."),
    ],
)
def test_bad_arguments(kind, error, message):
    with pytest.raises(error) as caught:
        MultiDepthwiseConv2d(**{"channels": 8, **kind})
    assert str(caught.value) == message


@pytest.mark.parametrize("x", [None, [1], 2.0])
def test_no_tensor(x):
    with pytest.raises(TypeError, match=r"^multi_dwconv2d: x must be a tensor; got "):
        MultiDepthwiseConv2d(8)(x)

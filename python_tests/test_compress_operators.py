"""The operators against the paper's table, and against a definition in torch's functions."""

import copy
import json
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightkernels.compress import operators
from lightkernels.compress.cost import _on_meta, cost
from lightkernels.compress.operators import SETS, build_operator, plain, register_operator, why_not
from lightkernels.compress.operators_layers import DepthwiseConv2d, GroupedConv2d
from lightkernels.compress.operators_modules import Gradient
from lightkernels.models import count, create_model
from lightkernels.nn import MultiDepthwiseConv2d, RSDC2d

GOLDEN = json.loads((Path(__file__).parent / "golden" / "lwdc.json").read_text())
OWN = ("RSDC_5x5_2", "Multi_357_2", "Multiception")


def test_one_operator_is_a_set_of_its_own():
    assert operators.operator_set("N_3x3_32") == ("N_3x3_32",)


def test_sets_are_the_papers():
    assert {name: list(SETS[name]) for name in GOLDEN["sets"]} == GOLDEN["sets"]


def test_counts_are_the_papers():
    for name, ci, co, stride, h, w, weights, macs in GOLDEN["operators"]:
        found = cost(name, ci, co, stride, (h, w))
        assert (found.params, found.macs) == (weights, macs), (name, ci, co, stride)


@pytest.mark.parametrize("stride", [1, 2])
def test_counts_are_those_of_the_modules(stride):
    names = {row[0] for row in GOLDEN["operators"]} | set(OWN)
    for name in sorted(names):
        for ci, co, size in ((32, 32, (9, 7)), (32, 64, (8, 8))):
            if why_not(name, ci, co, stride) is None:
                found = cost(name, ci, co, stride, size)
                params, macs, norms = _on_meta(name, ci, co, stride, size)
                assert (found.params, found.norm_params) == (params, norms), name
                assert found.macs == macs or "pool" in name, name


NETWORKS = {
    "ResNet20": ("cifar_resnet20", 32),
    "ResNet56": ("cifar_resnet56", 32),
    "VGG16": ("vgg16_cifar", 32),
    "ResNet18": ("resnet18_cifar", 32),
    "DenseNet121": ("densenet121_16", 16),
    "MobileNetV2": ("mobilenetv2_16", 16),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_totals_of_the_networks(network):
    name, side = NETWORKS[network]
    with torch.device("meta"):
        model = create_model(name, num_classes=10)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d | MultiDepthwiseConv2d)]
    inner = [m for m in convs if isinstance(m, MultiDepthwiseConv2d)]
    convs = [m for m in convs if not any(m in parent.branches for parent in inner)]
    stem, *counted = convs
    want = GOLDEN["networks"][network]
    assert len(counted) == want["counted_layers"]
    assert sum(p.numel() for m in counted for p in m.parameters()) == want["params"]
    others = stem.weight.numel() * side * side + model.classifier.weight.numel()
    assert count(model, (3, side, side)).ops - others == want["macs"]


def test_what_does_not_fit():
    assert why_not("N_3x3_16", 24, 48) == "its 24 input channels are not a multiple of 16"
    assert why_not("C_3x3_16", 16, 16) == "its 16 output channels are not a multiple of 32"
    assert why_not("C_3x3_8", 24, 24) == "its 24 output channels are not a multiple of 16"
    assert why_not("Fire", 3, 6) == "its 6 output channels are not a multiple of 4"
    assert why_not("skip_connect", 8, 8, 2) == "its stride is 2"
    assert why_not("max_pool_3x3", 8, 16) == "its 8 input channels are not its 16 output channels"
    assert [why_not(name, 64, 128, 2) for names in SETS.values() for name in names] == [None] * sum(
        map(len, SETS.values())
    )


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: build_operator("N_3x3_5", 8, 8), ValueError, "name must fit a layer of 8 to 8 channels with stride 1"),
        (lambda: build_operator("N_3x3_5", 8, 8), ValueError, "Hint: its 8 input channels are not a multiple of 5."),
        (lambda: build_operator("Seb_3x3", 8, 8), ValueError, "Hint: did you mean Sep_3x3?"),
        (lambda: build_operator("N_3x5", 8, 8), ValueError, "name must be an operator's name"),
        (lambda: build_operator("N_3x3_1", 8, 8), ValueError, "name must be an operator's name"),
        (lambda: build_operator("N_3x3", 8.0, 8), TypeError, "in_channels must be an int"),
        (lambda: cost("Fire", 8, 6), ValueError, "cost: name must fit a layer"),
        (lambda: cost("Fire", 8, 8, size=(0, 4)), ValueError, "cost: size must be at least 1"),
        (lambda: register_operator("Fire", nn.Identity), ValueError, "name must be new"),
        (lambda: register_operator("N_3x3_64", nn.Identity), ValueError, "name must be new"),
        (lambda: register_operator("mine", 3), TypeError, "build must be a function"),
        (lambda: operators.operator_set("SOP11"), ValueError, "Hint: did you mean SOP1?"),
        (lambda: operators.operator_set(["Fire", "Fire"]), ValueError, "name no operator twice"),
        (lambda: operators.operator_set(["Fire", "Flame"]), ValueError, "got 'Flame'"),
    ],
)
def test_refusals(call, error, text):
    with pytest.raises(error) as caught:
        call()
    assert text in str(caught.value)


# A second reading of the table: name, shapes and tensors in, output out; batch statistics.


def norm(z, w, at):
    mean, var = z.mean((0, 2, 3), keepdim=True), z.var((0, 2, 3), unbiased=False, keepdim=True)
    out = (z - mean) / (var + 1e-5).sqrt()
    return out * w[f"{at}.weight"][:, None, None] + w[f"{at}.bias"][:, None, None]


def shuffled(y, groups):
    if groups == 1:
        return y
    each = y.shape[1] // groups
    return y[:, [g * each + j for j in range(each) for g in range(groups)]]


def conv(x, weight, stride=1, groups=1, dilation=1):
    padding = dilation * (weight.shape[-1] // 2)
    return F.conv2d(x, weight, None, stride, padding, dilation, groups)


def separable(x, w, at, stride, dilation, groups, rectified=False):
    z = conv(x, w[f"{at}depthwise.weight"], stride, x.shape[1], dilation)
    z = norm(conv(z, w[f"{at}pointwise.weight"], 1, groups), w, f"{at}norm")
    return shuffled(z.relu() if rectified else z, groups)


def defined(name, x, w, stride, rectified):
    parts = name.split("_")
    groups = int(parts[-1]) if parts[-1].isdigit() else 1
    act = torch.relu if rectified else lambda z: z
    if parts[0] == "N":
        return shuffled(act(norm(conv(x, w["conv.weight"], stride, groups), w, "norm")), groups)
    if parts[0] == "C":
        z = norm(conv(x, w["conv.weight"], stride, groups), w, "norm")
        return shuffled(torch.cat((z.relu(), (-z).relu()), 1), 2 * groups if groups > 1 else 1)
    dilation = 2 if parts[0] == "Dil" else 1
    if parts[1:2] == ["res"]:
        h = x + separable(x, w, "unit1.", 1, dilation, groups, True)
        y = separable(h, w, "unit2.", stride, dilation, groups, rectified)
        return y + h if y.shape == h.shape else y
    if parts[0] in ("Sep", "Dil"):
        return separable(x, w, "", stride, dilation, groups, rectified)
    if name == "Fire":
        narrow = norm(conv(x, w["squeeze.weight"]), w, "squeeze_norm").relu()
        assert narrow.shape[1] == min(w["norm.weight"].numel() // 4, 64)
        wide = [conv(narrow, w[f"expand{k}.weight"], stride) for k in (1, 3)]
        return act(norm(torch.cat(wide, 1), w, "norm"))
    if name == "skip_connect":
        return x
    if name == "max_pool_3x3":
        return F.max_pool2d(x, 3, stride, 1)
    ones = F.avg_pool2d(torch.ones_like(x), 3, stride, 1)
    return F.avg_pool2d(x, 3, stride, 1) / ones


NAMES = sorted({row[0] for row in GOLDEN["operators"]})


@cache
def image(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def built(name, ci, co, stride, act=False):
    torch.manual_seed(2)
    module = build_operator(name, ci, co, stride, act=act, dtype=torch.float64)
    with torch.no_grad():
        for key, value in module.named_parameters():
            if "norm" in key:
                value.add_(0.3 * torch.randn(value.shape, dtype=value.dtype))
    return module


@pytest.mark.parametrize("name", NAMES)
def test_operators_are_as_defined(name):
    for co, stride, act in ((16, 1, False), (32, 2, True)):
        co = co * (2 if name == "C_3x3_16" else 1)
        ci = 16 if why_not(name, 16, co, stride) is None else co
        if why_not(name, ci, co, stride) is not None:
            continue
        module, x = built(name, ci, co, stride, act), image(3, ci, 7, 6)
        y = module(x)
        torch.testing.assert_close(y, defined(name, x, module.state_dict(), stride, act))
        assert list(y.shape) == [3, co, -(-7 // stride), -(-6 // stride)]


@pytest.mark.parametrize("name", [*NAMES, *OWN])
def test_probes_are_scalar_products(name):
    """Of the output, and they leave no trace; in both modes and whatever the gradient's strides."""
    co = 32 if name == "C_3x3_16" else 16
    module, x = built(name, co, co, 1), image(3, co, 7, 6)
    for act in {False, name.startswith("N_")}:
        module = built(name, co, co, 1, act)
        module(x)
        for training, last in ((True, False), (False, True)):
            module.train(training)
            other = copy.deepcopy(module)
            y = module(x).detach()
            g = image(*y.shape).roll(1, 0)
            g = g.contiguous(memory_format=torch.channels_last) if last else g
            with torch.no_grad():
                features = other.features(x)
                product = other.probe(features, Gradient(g))
            torch.testing.assert_close(torch.as_tensor(product, dtype=y.dtype), (y * g).sum())


@pytest.mark.parametrize("name", ["N_3x3_4", "C_3x3_4", "Sep_5x5_8", "Dil_res_3x3_4", "Fire", *OWN])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_plain_operators_are_torch_and_equal(name, training):
    module, x = built(name, 16, 32, 2), image(3, 16, 7, 6)
    module(x)
    module.train(training)
    alone = module.plain()
    ours = GroupedConv2d | DepthwiseConv2d | MultiDepthwiseConv2d | RSDC2d
    assert any(isinstance(m, ours) for m in module.modules()) and not any(isinstance(m, ours) for m in alone.modules())
    if "RSDC" not in name:
        assert {k: v.shape for k, v in alone.state_dict().items()} == {
            k: v.shape for k, v in module.state_dict().items()
        }
    torch.testing.assert_close(alone(x), module(x))
    shared = {p.data_ptr() for p in module.parameters()} & {p.data_ptr() for p in alone.parameters()}
    assert not shared


def test_plain_replaces_layers_that_stand_alone():
    layer = GroupedConv2d(8, 8, 3, groups=4)
    assert type(plain(layer)) is nn.Conv2d and type(layer) is GroupedConv2d


@pytest.mark.parametrize("groups", [2, 4])
def test_every_group_after_crelu_sees_both_signs_of_every_group(groups):
    module = built(f"C_3x3_{groups}", 16, 32, 1)
    source = torch.arange(16) // (16 // groups)
    tagged = module.shuffle(torch.cat((source, source + 100)).view(1, 32, 1, 1)).view(groups, -1)
    assert all(set(row.tolist()) == {*range(groups), *range(100, 100 + groups)} for row in tagged)


def test_an_rsdc_operator_is_the_same_wherever_it_is_built():
    a, b = (build_operator("RSDC_5x5_2", 8, 16) for _ in range(2))
    assert torch.equal(a.conv.taps, b.conv.taps) and copy.deepcopy(a).conv.weight.shape == (16, 4, 9)
    assert not torch.equal(a.conv.taps, build_operator("RSDC_5x5_2", 8, 32).conv.taps)


@pytest.fixture
def own_operator(monkeypatch):
    monkeypatch.setattr(operators, "_registered", {})

    def build(ci, co, stride, act):
        return nn.Sequential(nn.Conv2d(ci, co, 5, stride, 2), nn.BatchNorm2d(co), nn.Dropout(0.1))

    register_operator("mine", build, why_not=lambda ci, co, s: None if ci < 20 else "it is too wide")
    return "mine"


def test_an_operator_of_ones_own(own_operator):
    assert "mine" in operators.list_operators("m*") and why_not("mine", 20, 8) == "it is too wide"
    found = cost("mine", 4, 8, 2, (9, 9))
    assert (found.params, found.macs, found.norm_params) == (4 * 8 * 25 + 8, 4 * 8 * 25 * 25, 16)
    assert build_operator("mine", 4, 8, 2, dtype=torch.float64)(image(1, 4, 9, 9)).shape == (1, 8, 5, 5)


def test_latency_is_measured_and_remembered():
    found = cost("N_3x3_4", 16, 16, size=8)
    first = found.latency(2)
    assert 1e-6 < first < 1.0 and cost("N_3x3_4", 16, 16, size=(8, 8)).latency(2) == first
    assert found.latency(2, dtype=torch.float64) != first

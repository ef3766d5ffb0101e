"""Names, and what the builders refuse."""

import pytest
import torch
from models_helpers import undrawn

import lightkernels
from lightkernels.models import (
    create_model,
    dilated_mobilenetv2,
    list_models,
    mobilenetv2,
    multiception_net,
    pydmobilenet,
)
from lightkernels.models.registry import register
from lightkernels.nn import MultiDepthwiseConv2d


def test_names():
    names = list_models()
    assert names == sorted(set(names))
    assert len(list_models("pydmobilenet_*")) == 22
    assert list_models("pydmobilenet_concat_29_*") == [f"pydmobilenet_concat_29_{a}" for a in ("025", "050", "075")]
    assert list_models("stl_*") == [f"stl_mobilenetv2_{c}" for c in ("dsconv", "mixconv", "multiception", "standard")]
    assert len(list_models("cifar_*")) == 32
    assert list_models("*mobilenetv2*split") == ["dilated_mobilenetv2_split"]
    assert {"pydmobilenet", "multiception_net", "mobilenetv2", "dilated_mobilenetv2"} < set(names)
    depths = (50, 74, 86, 98, 110, 122, 182)
    assert set(list_models("condensenet_*")) == {
        *(f"condensenet_{depth}" for depth in depths),
        *("condensenet_74_imagenet_c4", "condensenet_74_imagenet_c8"),
    }
    assert list_models("condensenetv2_*") == ["condensenetv2_a", "condensenetv2_b", "condensenetv2_c"]
    assert list_models("nothing*") == []


@pytest.mark.parametrize("name", list_models())
def test_every_name_makes_a_network_whose_depthwise_layers_are_ours(name):
    with undrawn():
        model = create_model(name, num_classes=7)
    assert model.classifier.out_features == 7
    ours = {id(branch) for m in model.modules() if isinstance(m, MultiDepthwiseConv2d) for branch in m.branches}
    convs = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d) and m.groups > 1]
    assert {id(m) for m in convs if m.groups == m.in_channels} == ours


def test_options_override_the_name():
    with torch.device("meta"):
        assert create_model("pydmobilenet_add_56_050", num_classes=10, alpha=1.0).stages[0][0].reduce.out_channels == 32


def test_public_names():
    assert lightkernels.models.create_model is create_model
    assert set(lightkernels.models.__all__) == {
        *("Count", "count", "create_model", "list_models"),
        *("condensenet", "dilated_mobilenetv2", "mldn", "mobilenetv2", "multiception_net", "pydmobilenet"),
        *("cifar_resnet", "densenet121_16", "mobilenetv2_16", "resnet18_cifar", "vgg16_cifar"),
    }
    assert set(lightkernels.nn.__all__) >= {"DepthwiseSeparable2d", "MultiDepthwiseConv2d", "Multiception2d", "RSDC2d"}


ARCHS = "'resnet20', 'resnet50', 'resnet56', 'resnet110', 'senet56', 'shakenet26_2x96d', 'mobilenetv2'"
CONVS = "'standard', 'dsconv', 'mixconv', 'mixconv_dense', 'multiception'"
NET = "multiception_net"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: create_model("mobilnetv2", num_classes=1),
            ValueError,
            "create_model: name must be one of list_models(); got 'mobilnetv2'. Hint: did you mean mobilenetv2?",
        ),
        (
            lambda: multiception_net(kernels=3),
            TypeError,
            "multiception_net: kernels must be a sequence of three sets of ints; got 3.",
        ),
        (
            lambda: dilated_mobilenetv2(split="no"),
            TypeError,
            "dilated_mobilenetv2: split must be a bool; got 'no'.",
        ),
        (
            lambda: create_model("zzz", num_classes=1),
            ValueError,
            "create_model: name must be one of list_models(); got 'zzz'. Hint: list_models() gives all names.",
        ),
        (lambda: create_model(3, num_classes=1), TypeError, "create_model: name must be a str; got 3."),
        (
            lambda: register("mobilenetv2", mobilenetv2),
            ValueError,
            "register: name must be new; got 'mobilenetv2'.",
        ),
        (lambda: pydmobilenet(30), ValueError, "pydmobilenet: depth must be 9 n + 2 (29, 56); got 30."),
        (lambda: pydmobilenet(2), ValueError, "pydmobilenet: depth must be 9 n + 2 (29, 56); got 2."),
        (lambda: pydmobilenet(29.0), TypeError, "pydmobilenet: depth must be an int; got 29.0."),
        (
            lambda: pydmobilenet(29, 0.03),
            ValueError,
            "pydmobilenet: alpha must be finite and at least 0.03125; got 0.03.",
        ),
        (
            lambda: pydmobilenet(29, float("nan")),
            ValueError,
            "pydmobilenet: alpha must be finite and at least 0.03125; got nan.",
        ),
        (lambda: pydmobilenet(29, "1"), TypeError, "pydmobilenet: alpha must be a number; got '1'."),
        (
            lambda: pydmobilenet(mid="sum"),
            ValueError,
            "pydmobilenet: mid must be one of 'add', 'concat', 'depthwise', 'dense'; got 'sum'.",
        ),
        (
            lambda: pydmobilenet(inner="both"),
            ValueError,
            "pydmobilenet: inner must be one of 'out', 'in'; got 'both'.",
        ),
        (lambda: pydmobilenet(num_classes=0), ValueError, "pydmobilenet: num_classes must be at least 1; got 0."),
        (lambda: multiception_net("vgg"), ValueError, f"{NET}: arch must be one of {ARCHS}; got 'vgg'."),
        (
            lambda: multiception_net(conv="dense"),
            ValueError,
            f"{NET}: conv must be one of {CONVS}; got 'dense'.",
        ),
        (
            lambda: multiception_net(last="triple"),
            ValueError,
            f"{NET}: last must be one of 'double', 'single'; got 'triple'.",
        ),
        (
            lambda: multiception_net(kernels=((3,), (3,))),
            ValueError,
            f"{NET}: kernels must have three sets, one a stage; got ((3,), (3,)).",
        ),
        (
            lambda: multiception_net(conv="dsconv", last="single"),
            ValueError,
            f"{NET}: conv must be 'multiception' where kernels or last are chosen; got 'dsconv'.",
        ),
        (
            lambda: multiception_net(count_dead=True),
            ValueError,
            f"{NET}: arch must be 'shakenet26_2x96d' for count_dead; got 'resnet20'.",
        ),
        (
            lambda: multiception_net("mobilenetv2", "mixconv_dense"),
            ValueError,
            f"{NET}: conv must be another layer for MobileNetV2; got 'mixconv_dense'. "
            "Hint: 'mixconv' is defined there.",
        ),
        (lambda: mobilenetv2(stem_stride=0), ValueError, "mobilenetv2: stem_stride must be at least 1; got 0."),
        (
            lambda: dilated_mobilenetv2(()),
            ValueError,
            "dilated_mobilenetv2: dilations must name at least one branch; got ().",
        ),
        (
            lambda: dilated_mobilenetv2((1, 0)),
            ValueError,
            "dilated_mobilenetv2: dilations must be at least 1 everywhere; got (1, 0).",
        ),
        (
            lambda: dilated_mobilenetv2(width="v3"),
            ValueError,
            "dilated_mobilenetv2: width must be one of 'mobilenetv2', 'table3'; got 'v3'.",
        ),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message

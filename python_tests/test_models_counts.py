"""Every exact integer of the papers' networks: parameters, multiply-adds, the PydMobileNet paper's FLOPs."""

import json
from pathlib import Path

import pytest
from models_helpers import counted, measured, undrawn

from lightkernels.models import (
    create_model,
    dilated_mobilenetv2,
    mobilenetv2,
    multiception_net,
    pydmobilenet,
)
from lightkernels.models.paper_rows import PAPER_ROWS, agrees, deviation
from lightkernels.nn import MultiDepthwiseConv2d

SMALL = (3, 32, 32)


def golden(name):
    return json.loads((Path(__file__).parent / "golden" / f"{name}.json").read_text())


def params(make, *args, **options):
    with undrawn():
        return sum(p.numel() for p in make(*args, **options).parameters())


def fold_all(model):
    """Every layer of ours in the place of which a plain convolution will do."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, MultiDepthwiseConv2d):
                setattr(parent, name, child.fold())
    return model


@pytest.mark.parametrize(("row", "want"), golden("pydmobilenet").items())
def test_pydmobilenet(row, want):
    shape = {key: want[key] for key in ("depth", "alpha", "mid")}
    name = f"pydmobilenet_{want['mid']}_{want['depth']}_{round(100 * want['alpha']):03d}"
    built = measured(name, 10, SMALL)
    assert built.params == want["params_10"]
    assert params(pydmobilenet, **shape, num_classes=100) == want["params_100"]
    assert abs(built.params - float(want["printed_params"]) * 1e6) < 1000
    assert abs(built.ops / 1e6 - want["macs_millions"]) < 0.006
    assert built.ops == want.get("macs", built.ops)

    flops = measured(name, 10, SMALL, "pydmobilenet", inner="in").ops
    assert round(flops / 1e6) == want["printed_flops"]
    # The specification gives two decimals, some of them rounded twice (52.1249 as 52.13).
    assert abs(flops / 1e6 - want["flops_millions"]) < 0.006
    assert flops == want.get("flops", flops)

    if want["mid"] == "add":
        with undrawn():
            model = fold_all(pydmobilenet(**shape))
        folded = counted(model, SMALL)
        assert folded.params == want["folded_params"]
        assert abs(folded.ops / 1e6 - want["folded_macs_millions"]) < 0.006
        assert folded.ops == want.get("folded_macs", folded.ops)


def test_pydmobilenet_read_as_its_table_2_has_other_parameters():
    assert params(pydmobilenet, 29, 0.25, "add", inner="in") == 53664
    assert params(pydmobilenet, 56, 0.75, "concat", inner="in") == 455656


@pytest.mark.parametrize(
    "want", golden("multiception"), ids=lambda want: "-".join(map(str, list(want.values())[:5])).lower()
)
def test_multiception(want):
    name = f"{'stl' if want['arch'] == 'mobilenetv2' else 'cifar'}_{want['arch']}_{want['conv']}"
    options = {"count_dead": True} if want["count_dead"] else {}
    found = measured(name, want["num_classes"], (3, want["size"], want["size"]), **options)
    assert found.params == want["params"]
    assert found.ops == want.get("macs", found.ops)


# ResNet-20, ResNet-50, SeNet-56.
SENSITIVITY = {
    "as released": ({}, (189434, 509434, 585530)),
    "one 3x3 last": ({"last": "single"}, (177434, 473434, 544730)),
    "(3,5,7) in the middle": ({"kernels": ((3, 5, 7), (3, 5, 7), (3, 3))}, (196074, 529354, 608106)),
}


@pytest.mark.parametrize("reading", SENSITIVITY)
def test_multiception_readings(reading):
    options, want = SENSITIVITY[reading]
    archs = ("resnet20", "resnet50", "senet56")
    assert tuple(params(multiception_net, arch, **options) for arch in archs) == want


def test_se_reduction_16():
    found = [params(multiception_net, "senet56", conv, se_reduction=16) for conv in ("standard", "multiception")]
    assert found == [861818, 579482]


@pytest.mark.parametrize(("pair", "want"), [((3, 5), 500858), ((3, 7), 509690), ((5, 7), 515578)])
def test_kernel_sets_of_table_4(pair, want):
    assert params(multiception_net, "resnet50", kernels=(pair, pair, (3, 3))) == want


def test_stride_at_the_depthwise_costs_less():
    """The multiply-adds of Multiception with its stride moved: 31.88, 85.00 and 95.64 million."""
    for arch, want in (("resnet20", 31.88), ("resnet50", 85.00), ("senet56", 95.64)):
        with undrawn():
            model = multiception_net(arch)
        for module in model.modules():
            if hasattr(module, "stride_at"):
                module.depthwise.stride, module.pointwise.stride = module.pointwise.stride, module.depthwise.stride
        assert abs(counted(model, SMALL).ops / 1e6 - want) < 0.006


@pytest.mark.parametrize("want", golden("nguyen"), ids=lambda want: "-".join(map(str, want.values())).replace(" ", ""))
def test_dilated_mobilenetv2(want):
    shape = {"dilations": tuple(want["dilations"]), "split": want["split"], "width": want["width"]}
    assert params(dilated_mobilenetv2, **shape, num_classes=want["num_classes"]) == want["params"]
    if want["num_classes"] == 102 and "macs" in want:
        name = "dilated_mobilenetv2_split" if want["split"] else "dilated_mobilenetv2"
        options = {"width": "table3"} if want["width"] == "table3" else {}
        options |= {} if shape["dilations"] == (1, 2, 3) else {"dilations": shape["dilations"]}
        assert measured(name, 102, (3, 224, 224), **options).ops == want["macs"]


def test_mobilenetv2():
    found = measured("mobilenetv2", 1000, (3, 224, 224))
    assert (found.params, found.ops) == (3504872, 300774272)
    with undrawn():
        flowers, stl = mobilenetv2(102), mobilenetv2(10, stem_stride=1)
    found = counted(flowers, (3, 224, 224))
    assert (found.params, round(found.ops / 1e6, 2)) == (2354534, 299.62)
    found = counted(stl, (3, 96, 96))
    assert (found.params, round(found.ops / 1e6, 1)) == (2236682, 220.0)


@pytest.mark.parametrize(
    "row", PAPER_ROWS, ids=lambda row: f"{row.row}-{row.dataset}-{row.num_classes}".replace(" ", "")
)
def test_paper_rows(row):
    options = {**row.options, **row.ops_options}
    found = measured(row.model, row.num_classes, row.input_size, row.convention, **options)
    assert found.ops == row.ops
    if row.ops_options:
        assert params(create_model, row.model, num_classes=row.num_classes, **row.options) == row.params
    else:
        assert found.params == row.params
    assert (False in (row.params_agree, row.ops_agree)) == row.note.startswith("known")


def test_paper_rows_are_all_there():
    sources = [row.paper for row in PAPER_ROWS]
    assert {source: sources.count(source) for source in sources} == {
        "PydMobileNet, Table 3": 25,
        "Multiception, Table V": 16,
        "Nguyen, Table 2": 5,
        "Nguyen, Table 3": 2,
        "CondenseNet, CIFAR-10": 7,
        "CondenseNet, ImageNet": 2,
        "CondenseNetV2, ImageNet": 3,
        "MLDN, Table 2": 24,
        "MLDN, Table 3": 14,
        "MLDN, Table 4": 1,
        "MLDN, Table 5": 1,
    }
    shake = next(row for row in PAPER_ROWS if "Shake" in row.row)
    assert shake.call == "create_model('cifar_shakenet26_2x96d_standard', num_classes=10, count_dead=True)"


def test_agreement_within_the_last_digit():
    assert agrees("17.59", 17_599_999) is True  # truncated
    assert agrees("17.59", 17_580_001) is True
    assert agrees("17.59", 17_600_004) is False
    assert agrees("29", 29_999_999) is True
    assert agrees("29", 30_000_000) is False
    assert agrees(None, 1) is None
    assert deviation("0.5", 510_000) == pytest.approx(0.02)
    assert deviation(None, 1) is None

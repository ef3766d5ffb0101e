"""CondenseNet and CondenseNetV2: exact counts, rules of divisibility, condensation, a training run."""

import json
from pathlib import Path

import pytest
import torch
from models_helpers import undrawn

from lightkernels.models import condensenet, count, create_model
from lightkernels.nn import LearnedGroupConv2d, condense, set_condensation_progress

GOLDEN = json.loads((Path(__file__).parent / "golden" / "mldn.json").read_text())
OURS = {name: row for name, row in GOLDEN.items() if row["config"]["paths"] is None}


def network(c):
    assert c["G1"] == c["G3"] and (not c["v2"] or (c["G1"], c["C"]) == (c["Gt"], c["Ct"]))
    own = {"hidden": c["fc_channel"], "head_reduction": c["last_se"]} if c["v2"] else {}
    if c["se_start"] < len(c["stages"]):
        own["se_from_block"] = c["se_start"]
    with undrawn():
        return condensenet(
            c["stages"],
            c["growth"],
            groups=c["G1"],
            condense_factor=c["C"],
            version=2 if c["v2"] else 1,
            num_classes=c["classes"],
            dataset="imagenet" if c["init_stride"] == 2 else "cifar",
            bottleneck=c["bottleneck"],
            **own,
        )


@pytest.mark.parametrize("row", OURS)
def test_exact_counts(row):
    want, config = OURS[row], OURS[row]["config"]
    model, size = network(config), (3, config["image"], config["image"])
    found = count(model, size, "condensenet")
    assert (found.params, found.ops) == (want["official_params"], want["official_ops"])
    found = count(model, size, "train")
    assert (found.params, found.ops) == (want["train_params"], want["dense_macs"])
    if want["final_channels"] < 1000:  # the others say nothing more of it
        found = count(model, size, "macs")
        assert (found.params, found.ops) == (want["train_params"], want["condensed_macs"])
    if "converted_ops" in want:
        found = count(model, size, "converted")
        assert (found.params, found.ops) == (want["converted_params"], want["converted_ops"])
    assert model.classifier.in_features == (config["fc_channel"] or want["final_channels"])


def test_golden_rows_are_there():
    assert len(OURS) == 9


def closed_form(stages, growth, groups, factor, classes, side, version):
    """Parameters and operations as sums over layers, written from the definition of the convention."""
    channels = 2 * growth[0]
    ops, params = 27 * channels * side**2, 27 * channels
    for block, (layers, k) in enumerate(zip(stages, growth, strict=True)):
        if block:
            ops += side**2 * channels
            side //= 2
        for _ in range(layers):
            weights = 4 * k * channels // factor + 36 * k * k // groups + (version - 1) * k * channels // factor
            ops += side**2 * (weights + channels + 4 * k + (version - 1) * k)
            params += weights + 2 * channels + 8 * k + (version - 1) * 2 * k
            channels += k
    head = channels * classes
    ops += 2 * channels * side**2 + head + (classes if version == 1 else 0)
    return params + 2 * channels + head + classes, ops


@pytest.mark.parametrize(
    "shape",
    [
        ((3, 1), (8, 12), 4, 2, 7, 16, 1),
        ((2, 2, 1), (6, 6, 18), 3, 6, 10, 24, 1),
        ((2, 3), (8, 24), 8, 4, 5, 8, 2),
        ((1, 2), (4, 8), 2, 1, 100, 32, 2),
    ],
)
def test_counts_are_the_closed_form(shape):
    stages, growth, groups, factor, classes, side, version = shape
    with torch.device("meta"):
        model = condensenet(stages, growth, groups=groups, condense_factor=factor, num_classes=classes, version=version)
    found = count(model, (3, side, side), "condensenet")
    assert (found.params, found.ops) == closed_form(*shape)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("condensenet_86", "CDN_cifar10"),
        ("condensenet_182", "CondenseNet-182_cifar10"),
        ("condensenet_74_imagenet_c4", "CondenseNet-74_C4G4_imagenet"),
        ("condensenetv2_a", "CondenseNetV2-A"),
        ("condensenetv2_b", "CondenseNetV2-B"),
    ],
)
def test_names_are_those_networks(name, row):
    config = OURS[row]["config"]
    with undrawn():
        model = create_model(name, num_classes=config["classes"])
    # h-swish costs what ReLU costs, so the counts do not see it.
    found = count(model, (3, config["image"], config["image"]), "condensenet")
    assert (found.params, found.ops) == (OURS[row]["official_params"], OURS[row]["official_ops"])
    swish = [i for i, block in enumerate(model.blocks[::2]) if isinstance(block[0].act, torch.nn.Hardswish)]
    assert swish == ([2, 3, 4] if "v2" in name else [])


def pruned(**options):
    torch.manual_seed(0)
    model = condensenet((2, 3), (8, 16), **options)
    model(torch.randn(4, 3, 16, 16))
    set_condensation_progress(model, 1.0)
    return model.eval()


VERSIONS = [
    {},
    {"groups": 2, "condense_factor": 4},
    {"version": 2, "se_from_block": 1, "hswish_from_block": 1, "head_reduction": 8, "hidden": 24},
    {"version": 2, "groups": 4, "condense_factor": 2},
]


@pytest.mark.parametrize("options", VERSIONS)
def test_condensed_is_the_masked_network(options):
    model = pruned(**options)
    x = torch.randn(2, 3, 16, 16)
    made = model.condense()
    torch.testing.assert_close(made(x), model(x), rtol=1e-4, atol=1e-5)
    assert sum(t.numel() for t in made.state_dict().values()) < sum(t.numel() for t in model.state_dict().values())
    assert not [m for m in made.modules() if isinstance(m, LearnedGroupConv2d)]
    version = options.get("version", 1)
    small = model.condense(prune_classifier=version == 1)
    size = (3, 16, 16)
    before = count(model, size, "converted")
    assert count(small, size, "converted") == count(small, size, "condensenet") == before
    assert sum(p.numel() for p in small.parameters()) == before.params
    assert count(made, size, "macs").ops == count(model, size, "macs").ops < count(model, size, "train").ops


def test_export_of_the_condensed_network():
    made, x = pruned().condense(), torch.randn(2, 3, 16, 16)
    program = torch.export.export(made, (x,))
    torch.testing.assert_close(program.module()(x), made(x))


def test_converted_parameters_are_the_papers():
    """The network itself, condensed, has the parameters that the convention says."""
    model = create_model("condensenet_50", num_classes=10)
    set_condensation_progress(model, 0.5)
    small = model.condense(prune_classifier=True)
    assert sum(p.numel() for p in small.parameters()) == OURS["CondenseNet-50_cifar10"]["converted_params"]


def test_initial_weights():
    torch.manual_seed(0)
    model = condensenet((1,), (64,), condense_factor=8, groups=8)
    layer = model.blocks[0][0]
    for weight, out in ((layer.conv.weight, 64 * 9), (layer.reduce.weight, 256), (model.stem.weight, 128 * 9)):
        assert abs(float(weight.detach().std()) / (2 / out) ** 0.5 - 1) < 0.05
    assert float(model.classifier.bias.detach().abs().max()) == 0
    second = condensenet((1,), (64,), version=2, sfr_zero_init=True)
    assert float(second.classifier.bias.detach().abs().max()) > 0
    assert float(second.blocks[0][0].reactivate.norm.weight.detach().abs().max()) == 0


def test_it_learns_digits_through_every_stage():
    pytest.importorskip("sklearn")
    from lightkernels.train import digits
    from lightkernels.train.loop import Recipe, accuracy, fit

    torch.manual_seed(0)
    model = condensenet((1, 2), (8, 16))
    train, test = digits.load()
    stages = []

    def tell(history):
        if set_condensation_progress(model, len(history.losses) / history.total):
            stages.append(len(history.losses) / history.total)

    history = fit(model, train, test, Recipe(epochs=3, batch=32, peak_rate=0.3, reach=0), 0, tell)
    assert len(stages) == 3 and stages[-1] < 0.52
    assert history.accuracies[-1] > 0.8
    small = condense(model)
    assert any(type(m).__name__ == "CondensedMLDNBlock" for m in small.modules())
    assert accuracy(small, test) == history.accuracies[-1]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: condensenet((2,), (6,)),
            ValueError,
            "condensenet: groups must divide the growth of every block, 6 in block 0; got 4.",
        ),
        (
            lambda: condensenet((2, 2), (8, 10), groups=2, condense_factor=8),
            ValueError,
            "condensenet: condense_factor must divide the channels of every layer, 42 in layer 1 of block 1; got 8.",
        ),
        (
            lambda: condensenet((2,), (8, 16)),
            ValueError,
            "condensenet: growth must have 1 entries, one a block; got (8, 16).",
        ),
        (lambda: condensenet((), ()), ValueError, "condensenet: stages must have at least one block; got ()."),
        (lambda: condensenet(version=3), ValueError, "condensenet: version must be 1 or 2; got 3."),
        (lambda: condensenet(hidden=8), ValueError, "condensenet: hidden must be None in version 1; got 8."),
        (
            lambda: condensenet(version=2, hidden=8.0),
            TypeError,
            "condensenet: hidden must be an int or None; got 8.0.",
        ),
        (
            lambda: condensenet(version=2, head_reduction=900),
            ValueError,
            "condensenet: head_reduction must be at most the last 800 channels; got 900.",
        ),
        (
            lambda: condensenet(version=2, se_from_block=-1),
            ValueError,
            "condensenet: se_from_block must be at least 0; got -1.",
        ),
        (
            lambda: condensenet(sfr_zero_init=True),
            ValueError,
            "condensenet: sfr_zero_init must be False in version 1; got True.",
        ),
        (
            lambda: condensenet(dataset="svhn"),
            ValueError,
            "condensenet: dataset must be one of 'cifar', 'imagenet'; got 'svhn'.",
        ),
    ],
)
def test_bad_arguments(call, error, message):
    with torch.device("meta"), pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message

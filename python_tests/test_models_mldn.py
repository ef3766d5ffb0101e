"""MLDN networks: exact counts, rules of divisibility, and a network as a whole."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from models_helpers import undrawn

from lightkernels import use_backend
from lightkernels.models import count, create_model, mldn
from lightkernels.nn import MLDNBlock, RSDC2d, set_condensation_progress

GOLDEN = json.loads((Path(__file__).parent / "golden" / "mldn.json").read_text())
ROWS = ("MLDN+CDN+ResNet_(2,_2,_2)_(8,_16,_32)_cifar10", "MLDN+RSDC+CDNV2_k=5_L=6_C=G=2_cifar100")
CONVENTIONS = {
    "condensenet": ("official_params", "official_ops"),
    "converted": ("converted_params", "converted_ops"),
    "train": ("train_params", "dense_macs"),
    "macs": ("train_params", "condensed_macs"),
}


def network(c):
    with undrawn():
        return mldn(
            c["stages"],
            c["growth"],
            c["paths"],
            version=2 if c["v2"] else 1,
            stem="resnet" if c["resnet"] else "conv",
            conv="rsdc" if c["rsdc"] > 3 else "standard",
            rsdc_bias=c["rsdc_bias"],
            groups=c["G1"],
            condense_factor=c["C"],
            num_classes=c["classes"],
        )


@pytest.mark.parametrize("row", ROWS)
def test_exact_counts(row):
    want = GOLDEN[row]
    model = network(want["config"])
    for convention, (params, ops) in CONVENTIONS.items():
        if params in want and ops in want:
            found = count(model, (3, 32, 32), convention)
            assert (found.params, found.ops) == (want[params], want[ops]), convention
    assert model.classifier.in_features == want["final_channels"]


class Wider(torch.nn.Module):
    """As many channels as the block that was here makes; nothing to count."""

    def __init__(self, block):
        super().__init__()
        self.channels = block.in_channels + block.num_layers * block.growth

    def forward(self, x):
        return x.new_empty(x.shape[0], self.channels, *x.shape[2:])


def stated(block, convention, side):
    """What ``count`` says of a block, which it has been asked for in whole networks above."""
    if convention != "train":
        x = torch.empty(1, block.in_channels, side, side, device="meta")
        return block.stated_count(convention, x, x)
    weights = [p.numel() for p in block.parameters()]
    macs = sum(p.numel() for p in block.parameters() if p.dim() > 1)
    return sum(weights), macs * side**2


def test_exact_counts_of_every_row(monkeypatch):
    """All networks of the table, each different block made once."""
    made = {}

    def cached(**options):
        key = repr(sorted(options.items()))
        if key not in made:
            made[key] = MLDNBlock(**options)
        return made[key]

    monkeypatch.setattr(sys.modules["lightkernels.models.mldn"], "MLDNBlock", cached)
    rows, wrong = [name for name, row in GOLDEN.items() if row["config"]["paths"] is not None], []
    assert len(rows) == 49
    for name in rows:
        want, model = GOLDEN[name], network(GOLDEN[name]["config"])
        blocks = [(i, m) for i, m in enumerate(model.blocks) if isinstance(m, MLDNBlock)]
        for i, block in blocks:
            model.blocks[i] = Wider(block)
        for convention, (params, ops) in CONVENTIONS.items():
            if params in want and ops in want:
                rest = count(model, (3, 32, 32), convention)
                parts = [stated(block, convention, 32 >> i) for i, (_, block) in enumerate(blocks)]
                found = rest.params + sum(p for p, _ in parts), rest.ops + sum(o for _, o in parts)
                if found != (want[params], want[ops]):
                    wrong.append((name, convention, found))
    assert not wrong


SMALL = {"stages": (2, 2), "growth": (8, 16), "paths": (2, 4), "dropout": 0.0}


def test_the_parts_are_where_the_paper_has_them():
    model = mldn(**SMALL, stem="resnet", conv="rsdc", rsdc_bias=True)
    first, second = (m for m in model.blocks if isinstance(m, MLDNBlock))
    assert not any(isinstance(m, RSDC2d) for m in first.modules())
    convs = [m for m in second.modules() if isinstance(m, RSDC2d)]
    assert len(convs) == 2 * 4 and all(c.kernel_size == (5, 5) and c.bias is not None for c in convs)
    x = torch.randn(2, 3, 16, 16)
    stem = model.stem(x)
    after = model.preprocess(stem)
    assert torch.equal(after[:, 8:], stem[:, 8:]) and not torch.equal(after[:, :8], stem[:, :8])
    bare = mldn(**SMALL, stem="resnet", stem_shortcut=False).preprocess
    bare.load_state_dict(model.preprocess.state_dict())
    bare.eval(), model.preprocess.eval()
    torch.testing.assert_close(bare(stem)[:, :8] + stem[:, :8], model.preprocess(stem)[:, :8])


@pytest.mark.parametrize("version", [1, 2])
def test_condensed_networks_compute_the_same(version):
    model = mldn(**SMALL, version=version, num_classes=5).double()
    set_condensation_progress(model, 1.0)
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    model(x)
    model.eval()
    small = model.condense()
    torch.testing.assert_close(small(x), model(x), rtol=1e-10, atol=1e-10)
    sizes = [sum(t.numel() * t.element_size() for t in m.state_dict().values()) for m in (small, model)]
    assert sizes[0] < 0.8 * sizes[1]
    assert not [name for name in small.state_dict() if name.endswith(("mask", "stage"))]
    program = torch.export.export(small, (x,))
    torch.testing.assert_close(program.module()(x), small(x))


RULES = [
    ({"paths": (3, 4)}, "mldn: paths must be 1 or even; got 3."),
    ({"growth": (12, 16)}, "mldn: groups must divide what a path adds of block 0, growth / paths = 6; got 4."),
    ({"growth": (8, 20)}, "mldn: groups must divide what a path adds of block 1, growth / paths = 5; got 4."),
    ({"growth": (8, 18)}, "mldn: paths must divide growth, 18; got 4."),
    ({"stages": (1, 2)}, "mldn: condense_factor must divide the channels of a path in every layer, 6 in layer 0"),
    ({"stages": (2,)}, "mldn: growth must have 1 entries, one a block; got (8, 16)."),
    ({"paths": (2, 6), "growth": (8, 48)}, "mldn: paths must divide the 32 channels of the block's input; got 6."),
    ({"condense_factor": 3}, "mldn: condense_factor must divide the channels of a path in every layer, 8 in layer 0"),
    ({"stem": "resnet18"}, "mldn: stem must be one of 'conv', 'resnet'; got 'resnet18'."),
    ({"version": 3}, "mldn: version must be 1 or 2; got 3."),
    ({"conv": "rsdc", "k_rsdc": 4}, "mldn: k_rsdc must be odd and at least 3, as nine cells are drawn; got 4."),
    ({"k_rsdc": 1}, "mldn: k_rsdc must be odd and at least 3, as nine cells are drawn; got 1."),
    ({"sfr_zero_init": True}, "mldn: sfr_zero_init must be False in version 1; got True."),
]


@pytest.mark.parametrize(("change", "text"), RULES, ids=lambda v: "-".join(v) if isinstance(v, dict) else "")
def test_every_rule_has_its_error(change, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        mldn(**{**SMALL, **change})


def test_wrong_types_are_refused_in_its_own_name():
    for name in ("stem_shortcut", "rsdc_bias", "sfr_zero_init", "recompute", "dropout", "k_rsdc"):
        with pytest.raises(TypeError, match=f"^mldn: {name} must be .*; got 'x'"):
            mldn(**{**SMALL, name: "x"})


def test_reactivation_can_start_as_nothing():
    for start in (True, False):
        block = mldn(stages=(1,), growth=(8,), paths=(2,), version=2, sfr_zero_init=start).blocks[0]
        scales = [path.reactivate.norm.weight for path in block.layers[0].paths]
        assert len(scales) == 2 and all(bool((s == 0).all()) == start for s in scales)


def test_registered_networks():
    with torch.device("meta"):
        model = create_model("mldnv2_rsdc7_222", num_classes=3, stages=(1, 1, 1))
    assert model.blocks[2].kernel_size == 7 and model.blocks[2].version == 2 and model.preprocess is not None


@pytest.mark.parametrize(("dtype", "version"), [(torch.float64, 1), (torch.float32, 1), (torch.float64, 2)])
def test_training_on_digits_is_that_of_the_reference_through_two_stages(dtype, version):
    """Loss by loss, with dropout: equal up to the order of sums in float64, within rounding in float32."""
    pytest.importorskip("sklearn")
    from lightkernels.train import digits

    train, _ = digits.load()
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).view(-1)
    options = {"stages": (1, 1), "growth": (8, 8), "paths": (2, 2), "dropout": 0.1, "conv": "rsdc", "version": version}
    curves, stages = [], []
    for backend in ("auto", "reference"):
        torch.manual_seed(0)
        model = mldn(**options).to(dtype)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, nesterov=True)
        losses, pruned = [], []
        with use_backend(backend):
            for step in range(24):
                if set_condensation_progress(model, 0.4 * step / 24):
                    pruned.append(step)
                which = order[step * 32 : step * 32 + 32]
                loss = F.cross_entropy(model(train.images[which].to(dtype)), train.labels[which])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                losses.append(loss.item())
        curves.append(torch.tensor(losses, dtype=torch.float64))
        stages.append(pruned)
    assert stages[0] == stages[1] and len(stages[0]) == 2
    bound = 1e-9 if dtype is torch.float64 else 2e-2
    assert float((curves[0] - curves[1]).abs().max()) < bound
    assert curves[0][-4:].mean() < 0.95 * curves[0][:4].mean()

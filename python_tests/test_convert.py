"""convert: a copy with layers replaced by rule, and what it says of every layer."""

import copy

import pytest
import torch
from torch import nn

from lightkernels import convert, models
from lightkernels.nn import RSDC2d, rsdc_rule


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 16, 1), nn.ReLU())
        self.twice = nn.Conv2d(16, 16, 3, padding=1)
        self.again = nn.Sequential(self.twice)
        self.head = nn.Conv2d(16, 4, 5, padding="same")

    def forward(self, x):
        return self.head(self.again(self.twice(self.body(self.stem(x)))))


def rows(report):
    return {row.name: (row.kind, row.changed, row.why) for row in report.rows}


def test_a_copy_with_a_row_for_every_layer():
    model = Net()
    before = copy.deepcopy(model.state_dict())
    new, report = convert(model, rsdc_rule(5, generator=torch.Generator().manual_seed(0)))
    said = "RSDC2d: 9 of 5x5 cells, a set for each filter"
    assert rows(report) == {
        "stem": ("Conv2d", True, said),
        "body.0": ("Conv2d", False, "it is depthwise (depthwise=True converts it)"),
        "body.1": ("Conv2d", False, "its kernel is 1x1, not 3x3"),
        "body.2": ("ReLU", False, "no rule speaks of it"),
        "twice": ("Conv2d", True, said),
        "again.0": ("Conv2d", True, said),
        "head": ("Conv2d", False, "its kernel is 5x5, not 3x3"),
    }
    assert [row.name for row in report.changed] == ["stem", "twice", "again.0"] and len(report.kept) == 4
    assert str(report).splitlines()[:2] == ["3 of 7 layers changed", f"  stem     Conv2d  changed  {said}"]
    assert isinstance(new.stem, RSDC2d) and new.again[0] is new.twice and type(new.head) is nn.Conv2d
    new(torch.randn(2, 3, 9, 9)).sum().backward()
    assert all(p.grad is None for p in model.parameters())
    with torch.no_grad():
        for p in new.parameters():
            p.zero_()
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert type(model.stem) is nn.Conv2d and model.again[0] is model.twice


def test_in_the_centre_the_model_computes_the_same():
    model, x = Net().double().eval(), torch.randn(2, 3, 9, 9, dtype=torch.float64)
    rules = [rsdc_rule(7, sizes=(3, 5), place="center", depthwise=True), lambda name, layer: None]
    new, report = convert(model, rules)
    assert len(report.changed) == 5 and not new.training
    torch.testing.assert_close(new(x), model(x), rtol=1e-12, atol=1e-12)


def test_the_first_answer_counts():
    def keep(name, layer):
        return "mine" if name == "stem" else None

    def wider(name, layer):
        return nn.Identity() if isinstance(layer, nn.ReLU) else None

    _, report = convert(Net(), [keep, wider, rsdc_rule(names="[st]*")])
    found = rows(report)
    assert found["stem"] == ("Conv2d", False, "mine") and found["body.2"] == ("ReLU", True, "Identity")
    assert found["twice"][1] and found["head"][2] == "no rule speaks of it"


def test_what_has_to_stay_says_why():
    class Own(nn.Conv2d):
        pass

    hooked = nn.Conv2d(4, 4, 3)
    hooked.register_forward_hook(lambda *_: None)
    tied = [nn.Conv2d(4, 4, 3) for _ in range(2)]
    tied[1].weight = tied[0].weight
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3))
    model = nn.Sequential(Own(4, 4, 3), hooked, *tied, normed, nn.Conv2d(4, 4, (3, 5)), nn.Conv2d(4, 4, 3))
    _, report = convert(model, rsdc_rule())
    why = [row.why for row in report.rows if row.kind.endswith("Conv2d") or row.kind == "Own"]
    assert why[:4] == [
        "it is a Own, not a plain Conv2d",
        "it has hooks, which would be lost",
        "it shares a parameter with another layer",
        "it shares a parameter with another layer",
    ]
    assert "its kernel is 3x5, not 3x3" in why and [row.name for row in report.changed] == ["6"]
    assert rows(report)["4"] == ("ParametrizedConv2d", False, "it is a ParametrizedConv2d, not a plain Conv2d")
    assert convert(nn.Conv2d(4, 4, 3), rsdc_rule(3))[0].kernel_size == (3, 3)
    _, refused = convert(nn.Conv2d(4, 4, 7), rsdc_rule(5, sizes=(7,)))
    assert "kernel_size must be at least the convolution's, 7; got 5" in refused.rows[0].why


@pytest.mark.parametrize(
    ("wrong", "kind", "text"),
    [
        ({"kernel_size": 4}, ValueError, "kernel_size must be odd; got 4"),
        ({"kernel_size": "5"}, TypeError, "kernel_size must be an int; got '5'"),
        ({"place": "left"}, ValueError, "place must be one of 'random', 'center'; got 'left'"),
        ({"scope": "connection"}, ValueError, "scope must be one of 'filter', 'group', 'layer'; got"),
        ({"sizes": (3, 5.0)}, TypeError, "sizes must be a sequence of ints; got"),
        ({"names": 3}, TypeError, "names must be a pattern of names; got 3"),
    ],
)
def test_a_rule_that_fits_no_layer_is_refused_when_made(wrong, kind, text):
    with pytest.raises(kind, match=f"^rsdc_rule: {text}"):
        rsdc_rule(**wrong)


def test_a_network_of_the_zoo():
    torch.manual_seed(0)
    model = models.create_model("mobilenetv2", num_classes=10).eval()
    new, report = convert(model, rsdc_rule(5, place="center", depthwise=True))
    assert [row.name for row in report.changed] == ["stem.0"]
    assert {row.kind for row in report.kept} >= {"MultiDepthwiseConv2d", "Conv2d", "Linear"}
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(new(x), model(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("model", "rules", "text"),
    [
        (3, rsdc_rule(), "convert: model must be an nn.Module; got 3"),
        (nn.ReLU(), 3, "convert: rules must be a rule or a sequence of rules; got 3"),
        (nn.ReLU(), [3], "convert: rules must be a rule or a sequence of rules"),
        (nn.ReLU(), lambda name, layer: True, "convert: rules must answer with a module, a reason or None"),
    ],
)
def test_wrong_arguments_are_refused_by_name(model, rules, text):
    with pytest.raises(TypeError, match=text):
        convert(model, rules)

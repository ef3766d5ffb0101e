"""What a reconstruction replaces and keeps, what it says of it, and what it can reach."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from compress_helpers import SITES, Net, images, network
from torch import nn

from lightkernels import compress, models
from lightkernels.compress import Selection

GOLDEN = json.loads((Path(__file__).parent / "golden" / "lwdc_networks.json").read_text())
# Ours, the paper's, what is replaced there, and the set of operators of the reachable rates.
NETWORKS = [
    ("cifar_resnet20", "ResNet20", {}, 32, ("SOP1", "SOP2")),
    ("cifar_resnet56", "ResNet56", {}, 32, ("SOP3",)),
    ("vgg16_cifar", "VGG16", {"pools": True}, 32, ("SOP4",)),
    ("resnet18_cifar", "ResNet18", {}, 32, ("SOP8",)),
    ("densenet121_16", "DenseNet121", {}, 16, ("SOP9",)),
    ("mobilenetv2_16", "MobileNetV2", {"sizes": (1,), "names": "blocks.*"}, 16, ("SOP10",)),
]


def test_the_plan_accounts_for_every_layer():
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan = compress.plan(model, images(), "SOP8")
    rows = {row.name: row for row in plan.rows}
    assert set(rows) == {name for name, m in model.named_modules() if not list(m.children())}
    assert [site.name for site in plan.sites] == SITES
    replaced = {name for name, row in rows.items() if row.replaced}
    assert replaced == {*SITES, "block1.norm1", "block1.norm2", "block2.norm1", "block2.norm2"}
    assert rows["stem"].why == "it is the first convolution (keep_first=False replaces it)"
    assert rows["depthwise"].why == "it is depthwise: it is light already"
    assert rows["block2.project"].why == "its kernel is 1x1, not 3x3"
    assert rows["classify"].why == "no operator replaces its kind"
    assert str(plan).startswith("4 of 15 layers are replaced\n")
    assert not any(isinstance(m, Selection) for m in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_supernet_is_what_the_plan_says():
    model = network()
    net, plan = compress.reconstruct(model, images(), "SOP8")
    assert list(compress.selections(net)) == SITES
    assert all(type(net.get_submodule(site.norm)) is nn.Identity for site in plan.sites)
    assert net(images()).shape == (4, 4)
    with pytest.raises(ValueError, match=r"have no selection operators yet; got 'block1.conv1'"):
        compress.plan(net, images())


class Odd(nn.Module):
    """Everything that must be kept, each for its own reason."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.good = nn.Conv2d(8, 8, 3, padding=1)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.dilated = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.valid = nn.Conv2d(8, 8, 3)
        self.reflected = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.uneven = nn.Conv2d(8, 8, 3, stride=(1, 2), padding=1)
        self.tied = nn.Conv2d(8, 8, 3, padding=1)
        self.tied2 = nn.Conv2d(8, 8, 3, padding=1)
        self.tied2.weight = self.tied.weight
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1))
        self.up = nn.ConvTranspose2d(8, 8, 3)
        self.never = nn.Conv2d(8, 8, 3, padding=1)
        self.shared_norm = nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        x = self.shared_norm(self.good(self.first(x)))
        x = self.shared_norm(self.twice(self.twice(x)))
        x = self.tied2(self.tied(self.reflected(self.grouped(self.dilated(x)))))
        return self.up(self.uneven(self.valid(self.normed(x)))) * scale


def test_what_is_kept_is_named_with_its_reason():
    plan = compress.plan(Odd(), {"x": images(), "scale": 2.0}, ["N_3x3", "Sep_3x3"])
    why = {row.name: row.why for row in plan.rows if not row.replaced}
    assert [site.name for site in plan.sites] == ["good"]
    assert plan.sites[0].norm is None  # its BatchNorm runs for another layer too
    for name, reason in {
        "twice": "it runs 2 times in one pass",
        "dilated": "its dilation is 2",
        "grouped": "it has 2 groups",
        "valid": "it makes 6x6 of 8x8, the operators would make 8x8",
        "reflected": "its padding mode is 'reflect'",
        "uneven": "its stride is 1x2",
        "tied": "it shares a parameter with another layer",
        "never": "it did not run with these example inputs",
        "up": "it is a ConvTranspose2d, not a plain Conv2d",
    }.items():
        assert why[name].startswith(reason), (name, why[name])
    assert any("not a plain Conv2d" in reason for name, reason in why.items() if name.startswith("normed"))


class Functional(nn.Module):
    """A convolution whose result two others read, and one whose BatchNorm does more."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one, self.two = (nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1) for i in range(3))
        self.norm1, self.norm2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.one(F.relu(self.first(x)))
        z = self.two(self.norm1(y) + y.sigmoid())
        return self.norm2(z), y


def test_a_batchnorm_goes_only_if_it_alone_reads_the_layer():
    net, plan = compress.reconstruct(Functional(), images(), ["N_3x3", "Sep_3x3"])
    assert {site.name: site.norm for site in plan.sites} == {"one": None, "two": "norm2"}
    assert isinstance(net.norm1, nn.BatchNorm2d)


class Watchful(nn.Module):
    """A layer and a norm called by keyword, a weight that something else reads, and a norm that somebody watches."""

    def __init__(self) -> None:
        super().__init__()
        convs = [nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1) for i in range(5)]
        self.first, self.named, self.one, self.two, self.three = convs
        self.norm1, self.norm3 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.norm3.register_forward_hook(lambda *_: None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm1(input=self.one(self.named(input=self.first(input=x))))
        return self.norm3(self.three(self.two(y.to(self.two.weight.dtype))))


def test_what_others_read_or_watch_stays_and_the_rest_is_found():
    net, plan = compress.reconstruct(Watchful(), images(), ["N_3x3", "Sep_3x3"])
    assert {site.name: site.norm for site in plan.sites} == {"one": "norm1", "three": None}
    why = {row.name: row.why for row in plan.rows}
    assert why["two"] == "its parameters are read from outside of it"
    assert why["named"].startswith("its input is a keyword argument")
    assert net(images()).shape == (4, 8, 8, 8) and net.norm3._forward_hooks


def test_errors_name_layer_operator_rule_and_mend():
    with pytest.raises(
        ValueError, match=r"(?s)fit every layer; got none for block1.conv1 \(16 to 16.*C_3x3_16: .*Hint"
    ):
        compress.plan(network(), images(), ["C_3x3_16"])
    with pytest.raises(ValueError, match=r"SOP8"):
        compress.plan(network(), images(), "SOP88")
    with pytest.raises(ValueError, match=r"have a layer that the operators can replace; got .*0: it is the first"):
        compress.plan(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1)), images())
    with pytest.raises(ValueError, match=r"have a layer that the operators can replace"):
        compress.plan(network(), images(), names="head.*")
    with pytest.raises(ValueError, match=r"without a wrapper; got 'DataParallel'. Hint: give the module inside"):
        compress.plan(nn.DataParallel(network()), images())
    with pytest.raises(TypeError, match=r"example_inputs must be a tensor"):
        compress.plan(network(), 3)
    with pytest.raises(TypeError, match=r"model must be an nn.Module"):
        compress.plan("resnet", images())
    with pytest.raises(TypeError, match=r"sizes must be an int or a sequence of ints; got \('3',\)"):
        compress.plan(network(), images(), sizes=("3",))
    with pytest.raises(TypeError, match=r"names must be a pattern of layers' names or several; got 3"):
        compress.plan(network(), images(), names=3)
    with pytest.raises(ValueError, match=r"example_inputs must have at least one image; got 0"):
        compress.plan(network(), images()[:0])


def test_operators_that_do_not_fit_are_left_out_and_said():
    plan = compress.plan(network(), images(), ["N_3x3", "C_3x3_16"])
    assert plan.sites[0].names == ("N_3x3",) and plan.sites[0].left_out[0][0] == "C_3x3_16"
    assert "without C_3x3_16: " in plan.rows[1].why


def test_a_start_from_trained_weights_is_equal_where_the_shape_is():
    model = network().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean), nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight), nn.init.uniform_(module.bias)
    net, _ = compress.reconstruct(model, images(), "SOP1", inherit=True)
    for selection in compress.selections(net).values():
        selection.set_index(selection.names.index("N_3x3"))
    torch.testing.assert_close(net.eval()(images()), model(images()))


def paper_plan(name, size, **where):
    with torch.device("meta"):
        model = models.create_model(name, num_classes=10)
    return compress.plan(model, torch.empty(1, 3, size, size, device="meta"), **where)


@pytest.mark.parametrize(("ours", "paper", "where", "size", "sets"), NETWORKS, ids=[row[0] for row in NETWORKS])
def test_totals_of_the_papers_networks(ours, paper, where, size, sets):
    """Section 5's totals, exact, and what each set of operators reaches."""
    expected = GOLDEN["nets"][paper]
    for operators in sets:
        plan = paper_plan(ours, size, operators=operators, **where)
        assert plan.before("params", "paper") == expected["params"]
        assert plan.before("macs", "paper") == expected["macs"]
        assert plan.before("params", "replaced") == expected["replaced_params"]
        assert plan.before("macs", "replaced") == expected["replaced_macs"]
        assert sum(site.kind == "conv" for site in plan.sites) == expected["replaced_layers"]
        (rate,) = [r for r in GOLDEN["pcr_range"] if r["net"] == paper and f"SOP{r['sop']}" == operators]
        for scope, key in (("paper", "pcr"), ("replaced", "pcr_replaced_only")):
            found = plan.range("params", scope)
            assert found.before / found.least == pytest.approx(rate[f"{key}_max"], abs=6e-4)
            assert found.before / found.most == pytest.approx(rate[f"{key}_min"], abs=6e-4)


def test_an_impossible_target_is_refused_before_training():
    """DenseNet121's quoted PCR of 3.42 cannot be reached over all layers with SOP9, whatever is chosen."""
    plan = paper_plan("densenet121_16", 16, operators="SOP9")
    with pytest.raises(ValueError, match=r"target_params must be at least 4,.*1\.41 times less.*58 replaced layers"):
        plan.target("params", plan.before("params", "paper") / 3.42, "paper")
    assert plan.target("params", plan.before("params", "replaced") / 3.42, "replaced").scope == "replaced"
    for wrong, error in (("half", ValueError), ("²%", ValueError), ([1], TypeError), (True, TypeError)):
        with pytest.raises(error, match=r"target_params must be a number, or a share"):
            plan.target("params", wrong)
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"target_params must be finite"):
            plan.target("params", wrong)
    assert plan.target("params", " 90 % ") == plan.target("params", "90%")


def test_whole_model_counts_are_those_of_the_network_made():
    net, plan = compress.reconstruct(Net(), images(1), "SOP8")
    derived, architecture = compress.derive(net, plan)
    found = plan.indices(architecture.operators)
    counted = models.count(derived, (3, 8, 8))
    assert plan.cost(found, "params") == counted.params
    # The FLOP counter knows no cost of shuffles and sums; neither does the plan.
    assert plan.cost(found, "macs") == counted.ops


def test_random_architectures_have_the_cost_asked_for():
    plan = compress.plan(network(), images(), "SOP8")
    for share in (0.2, 0.4, 0.7):
        cost = share * plan.before("params")
        for drawn in compress.random_architectures(plan, 3, cost=cost, tolerance=0.1):
            assert plan.cost(drawn, "params") == pytest.approx(cost, rel=0.1)
    assert compress.random_architectures(plan, 5, seed=1) == compress.random_architectures(plan, 5, seed=1)
    with pytest.raises(ValueError, match=r"cost must lie in"):
        compress.random_architectures(plan, 1, cost=1.0)

"""Learned groups and sparse feature reactivation: pruning, lasso, state, condensation."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightkernels.nn import (
    CondensedConv2d,
    CondensedReactivation,
    LearnedGroupConv2d,
    SparseFeatureReactivation,
    condense,
    group_lasso,
    set_condensation_progress,
)
from lightkernels.nn.condensed import CondensedLinear
from lightkernels.testing import assert_same_bits

BOTH = (LearnedGroupConv2d, SparseFeatureReactivation)
# Groups and condense factors, equal and not.
SHAPES = [(4, 4), (2, 4), (4, 2), (1, 3), (3, 1), (6, 12)]


def used(kind, *args, **kwargs):
    """A layer in float64 whose norm has seen data, so that every number in it matters."""
    layer = kind(*args, dtype=torch.float64, **kwargs)
    nn.init.normal_(layer.norm.weight)
    nn.init.normal_(layer.norm.bias)
    layer(torch.randn(3, args[0], 4, 5, dtype=torch.float64) * 2 + 1)
    return layer


def small(condensed, masked):
    return sum(t.numel() for t in condensed.state_dict().values()) < sum(
        t.numel() for t in masked.state_dict().values()
    )


@pytest.mark.parametrize("activation", ["relu", "hardswish"])
@pytest.mark.parametrize(("groups", "factor"), SHAPES)
def test_condensed_is_masked(groups, factor, activation):
    layer = used(LearnedGroupConv2d, 24, 12, groups=groups, condense_factor=factor, activation=activation)
    set_condensation_progress(layer, 1.0)
    made = layer.condense()
    assert isinstance(made, CondensedConv2d) and made.training
    assert made.weight.numel() * factor == layer.weight.numel()
    assert made.index.shape == (groups, 24 // factor) and bool((made.index.diff(dim=1) > 0).all())
    x = torch.randn(2, 24, 5, 3, dtype=torch.float64)
    for training in (False, True):  # in training by the statistics of this batch
        layer.train(training)
        made.train(training)
        torch.testing.assert_close(made(x), layer(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(made.norm.running_var, layer.norm.running_var[made.index.flatten()])
    assert factor == 1 or small(made, layer)


@pytest.mark.parametrize("activation", ["relu", "hardswish"])
@pytest.mark.parametrize(("groups", "factor"), SHAPES)
def test_condensed_reactivation_is_masked(groups, factor, activation):
    layer = used(SparseFeatureReactivation, 12, 24, groups=groups, condense_factor=factor, activation=activation)
    set_condensation_progress(layer, 1.0)
    made = layer.condense()
    assert isinstance(made, CondensedReactivation)
    assert made.weight.numel() * factor == layer.weight.numel()
    h, x = (torch.randn(2, c, 5, 3, dtype=torch.float64) for c in (12, 24))
    kept = x.clone()
    for training in (False, True):
        layer.train(training)
        made.train(training)
        torch.testing.assert_close(made(h), layer(h), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(made(h, x), x + layer(h), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(layer(h, x), x + layer(h), rtol=1e-12, atol=1e-12)
    assert_same_bits(x, kept)


def test_gradients_of_condensed_are_the_masked_ones():
    layer = used(LearnedGroupConv2d, 8, 4, groups=2, condense_factor=4)
    set_condensation_progress(layer, 1.0)
    layer.eval()
    made, x = layer.condense(), torch.randn(2, 8, 3, 3, dtype=torch.float64)
    results = []
    for module in (layer, made):
        leaf = x.clone().requires_grad_()
        module(leaf).sin().sum().backward()
        results.append(leaf.grad)
    torch.testing.assert_close(*results)
    rows = made.index[torch.arange(4) % 2]
    torch.testing.assert_close(made.weight.grad, layer.weight.grad.gather(1, rows))
    assert bool((layer.weight.grad[:, None] * ~layer.mask[torch.arange(4) % 2][:, None] == 0).all())


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("factor", [1, 2, 4, 5])
def test_stages_are_all_in_the_first_half(kind, factor):
    layer = kind(20, 20, groups=2, condense_factor=factor)
    events = []
    for step in range(1001):
        if set_condensation_progress(layer, step / 1000):
            events.append(step / 1000)
        assert layer.mask.sum(1).tolist() == [20 - layer.reached * (20 // factor)] * 2
    assert layer.reached == int(layer.stage) == factor - 1
    due = [s / (2 * (factor - 1)) for s in range(1, factor)]
    assert len(events) == len(due) and all(d <= e < d + 0.001 + 1e-9 for d, e in zip(due, events, strict=True))
    # Exactly at the events, whatever their rounding.
    for s, t in enumerate(due, 1):
        fresh = kind(20, 20, groups=2, condense_factor=factor)
        set_condensation_progress(fresh, t)
        assert fresh.reached == s


@pytest.mark.parametrize("kind", BOTH)
def test_a_jump_does_every_stage_one_after_another(kind):
    """The stages depend on each other only through what is left, so catching up gives what single steps give."""
    layer = kind(20, 20, groups=2, condense_factor=5)
    steps = copy.deepcopy(layer)
    for t in (0.13, 0.25, 0.38, 0.5):
        assert set_condensation_progress(steps, t) == 1
    assert set_condensation_progress(layer, 0.77) == 1
    assert_same_bits(layer.mask, steps.mask)
    before = layer.mask.clone()
    assert set_condensation_progress(layer, 0.0) == 0
    assert_same_bits(layer.mask, before)


def loops(kind, weight, groups, rounds, size):
    """The mask by the definition: group by group, the smallest sums among the survivors, one after another."""
    members = weight.shape[0] if kind is LearnedGroupConv2d else weight.shape[1]
    choices = weight.shape[1] if kind is LearnedGroupConv2d else weight.shape[0]
    alive = [set(range(choices)) for _ in range(groups)]
    for _ in range(rounds):
        for g in range(groups):
            for _ in range(size):
                sums = {
                    c: math.fsum(
                        abs(float(weight[o, c] if kind is LearnedGroupConv2d else weight[c, o]))
                        for o in range(g, members, groups)
                    )
                    for c in alive[g]
                }
                alive[g].remove(min(sums, key=sums.get))
    return alive


@pytest.mark.parametrize("kind", BOTH)
def test_the_smallest_survivors_go(kind):
    layer = kind(12, 18, groups=3, condense_factor=3) if kind is LearnedGroupConv2d else kind(
        12, 18, groups=3, condense_factor=6
    )  # fmt: skip
    choices = layer.mask.shape[1]
    size = choices // layer.condense_factor
    assert size == (4 if kind is LearnedGroupConv2d else 3)
    for stage in range(1, layer.condense_factor):
        with torch.no_grad():
            layer.weight.mul_(1 + 0.01 * torch.rand_like(layer.weight))
        set_condensation_progress(layer, stage / (2 * (layer.condense_factor - 1)))
    # Small changes between the stages do not reorder random sums; the definition on the last weights agrees.
    alive = loops(kind, layer.weight.detach(), 3, layer.condense_factor - 1, size)
    assert [set(row) for row in layer.kept().tolist()] == alive
    shown = layer.masked_weight() != 0
    for g in range(3):
        picked = shown[g::3] if kind is LearnedGroupConv2d else shown[:, g::3].t()
        assert bool((picked == layer.mask[g]).all())


@pytest.mark.parametrize("kind", BOTH)
def test_nothing_asks_the_device(kind):
    """Tensors without values cannot be asked: construction, pruning and the forward get along without."""
    with torch.device("meta"):
        layer = kind(16, 16)
        assert set_condensation_progress(layer, 0.4) == 1 and layer.reached == 2
        assert layer(torch.randn(2, 16, 5, 5)).shape == (2, 16, 5, 5)
        assert group_lasso(layer).is_meta


def test_models_do_not_share_their_progress():
    one, two = LearnedGroupConv2d(8, 8), LearnedGroupConv2d(8, 8)
    set_condensation_progress(one, 1.0)
    two(torch.randn(2, 8, 3, 3))
    assert (one.reached, two.reached) == (3, 0) and bool(two.mask.all())


@pytest.mark.parametrize("kind", BOTH)
def test_equal_nan_and_infinite_weights_still_leave_the_right_number(kind):
    layer = kind(8, 8, groups=2, condense_factor=4)
    with torch.no_grad():
        layer.weight.fill_(1)
        layer.weight[0, 0], layer.weight[1, 1], layer.weight[2, 2] = math.nan, math.inf, -math.inf
    for stage in range(4):
        set_condensation_progress(layer, stage / 6)
        assert layer.mask.sum(1).tolist() == [8 - 2 * stage] * 2


def test_lasso_by_its_definition():
    layer = LearnedGroupConv2d(6, 4, groups=2, condense_factor=3, dtype=torch.float64)
    other = SparseFeatureReactivation(4, 6, groups=2, condense_factor=3, dtype=torch.float64)
    with torch.no_grad():
        layer.weight[:, 0] = 0
    set_condensation_progress(nn.Sequential(layer, other), 0.25)
    expected, first, second = 0.0, layer.weight.tolist(), other.weight.tolist()
    for g in range(2):
        for i in range(6):
            outs = sum(first[o][i] ** 2 for o in range(g, 4, 2)) * bool(layer.mask[g, i])
            ins = sum(second[i][c] ** 2 for c in range(g, 4, 2)) * bool(other.mask[g, i])
            expected += math.sqrt(max(outs, 1e-6)) + math.sqrt(max(ins, 1e-6))
    value = group_lasso(nn.ModuleList([layer, other]))
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64))
    value.backward()
    assert bool(layer.weight.grad.isfinite().all()) and float(layer.weight.grad[:, 0].abs().max()) == 0
    # C - 1 is the last stage, also where there are more groups: the published code goes by the groups.
    many = LearnedGroupConv2d(8, 8, groups=8, condense_factor=2)
    assert bool(group_lasso(many) > 0)
    set_condensation_progress(many, 0.5)
    assert float(group_lasso(many)) == 0 and group_lasso(nn.ReLU()).shape == ()


def trained(layer, optimizer, first, last):
    for step in range(first, last):
        set_condensation_progress(layer, step / 20)
        x = torch.randn(4, 8, 3, 3, generator=torch.Generator().manual_seed(step))
        loss = layer(x).square().mean() + 1e-3 * group_lasso(layer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def optimizer_of(layer):
    return torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)


@pytest.mark.parametrize("pause", [0, 5, 7, 11])
def test_resuming_in_the_middle_of_pruning_is_the_same_bit_for_bit(pause, tmp_path):
    layer = LearnedGroupConv2d(8, 8, groups=2, condense_factor=4)
    optimizer = optimizer_of(layer)
    trained(layer, optimizer, 0, pause)
    torch.save({"layer": layer.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    trained(layer, optimizer, pause, 14)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    again = LearnedGroupConv2d(8, 8, groups=2, condense_factor=4)
    again.load_state_dict(state["layer"])
    resumed = optimizer_of(again)
    resumed.load_state_dict(state["optimizer"])
    trained(again, resumed, pause, 14)
    assert again.reached == layer.reached == 3
    for name, t in layer.state_dict().items():
        assert_same_bits(again.state_dict()[name], t, name)


def test_averaged_models_condense():
    layer = LearnedGroupConv2d(8, 8)
    average = torch.optim.swa_utils.AveragedModel(layer)
    set_condensation_progress(layer, 1.0)
    average.update_parameters(layer)
    assert_same_bits(condense(average).module.index, layer.condense().index)


def test_what_is_loaded_is_checked():
    layer = LearnedGroupConv2d(8, 8, groups=2)
    good = copy.deepcopy(layer.state_dict())
    for change in ({"stage": torch.tensor(1)}, {"stage": torch.tensor(4)}, {"mask": torch.eye(2, 8) > 0}):
        with pytest.raises(RuntimeError, match="not a mask of stage"):
            layer.load_state_dict({**good, **change})
    assert layer.reached == 0
    half = LearnedGroupConv2d(8, 8, groups=2)
    set_condensation_progress(half, 0.2)
    layer.load_state_dict(half.state_dict())
    assert layer.reached == 1


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = LearnedGroupConv2d(8, 8, condense_factor=2)
        self.body = nn.Sequential(self.first, nn.ReLU(), nn.Conv2d(8, 8, 3))
        self.classifier = nn.Linear(8, 3)

    def forward(self, x):
        return self.classifier(self.body(x).mean((2, 3)))


def test_a_whole_model():
    model = Network().eval()
    x = torch.randn(2, 8, 6, 6)
    with pytest.raises(ValueError, match=r"LearnedGroupConv2d.condense: stage must be the last, 1; got 0. Hint: set_"):
        condense(model)
    set_condensation_progress(model, 1.0)
    before = copy.deepcopy(model.state_dict())
    made = condense(model)
    assert made.body[0] is made.first and isinstance(made.first, CondensedConv2d) and not made.training
    torch.testing.assert_close(made(x), model(x))
    assert not {p.data_ptr() for p in made.parameters()} & {p.data_ptr() for p in model.parameters()}
    half = condense(model, classifier="classifier")
    assert isinstance(half.classifier, CondensedLinear) and half.classifier.weight.shape == (3, 4)
    cut = copy.deepcopy(model)
    weak = cut.classifier.weight.detach().abs().sum(0).argsort()[:4]
    cut.classifier.weight.data[:, weak] = 0
    torch.testing.assert_close(half(x), cut(x))
    for name, t in model.state_dict().items():
        assert_same_bits(t, before[name], name)
    program = torch.export.export(half, (x,))
    torch.testing.assert_close(program.module()(x), half(x))
    for frozen in (True, False):
        assert condense(model.requires_grad_(not frozen)).first.weight.requires_grad is not frozen


@pytest.mark.parametrize("kind", BOTH)
def test_conveniences_of_modules(kind):
    layer = used(kind, 8, 8)
    assert "stage=0 of 3" in repr(layer)
    set_condensation_progress(layer, 0.3)
    fresh = copy.deepcopy(layer)
    assert fresh.reached == 1
    fresh.reset_parameters()
    assert fresh.reached == 0 and bool(fresh.mask.all()) and float(fresh.norm.bias.detach().abs().max()) == 0
    assert abs(float(kind(64, 64).weight.detach().std()) - (2 / 64) ** 0.5) < 0.02
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(layer))
    assert isinstance(synced.norm, nn.SyncBatchNorm)
    assert (
        layer.bfloat16()(torch.randn(2, 8, 3, 3).bfloat16()).dtype is torch.bfloat16 and layer.mask.dtype is torch.bool
    )


def test_zero_init_adds_nothing():
    layer = SparseFeatureReactivation(8, 8, zero_init=True)
    x, h = torch.randn(2, 2, 8, 3, 3)
    assert_same_bits(layer(h, x), x)


def test_dropout_stands_before_the_convolution():
    layer = used(LearnedGroupConv2d, 8, 8, dropout=0.5)
    x = torch.randn(2, 8, 3, 3, dtype=torch.float64)
    torch.manual_seed(1)
    y = layer(x)
    torch.manual_seed(1)
    a = F.dropout(F.relu(F.batch_norm(x, None, None, layer.norm.weight, layer.norm.bias, True)), 0.5)
    torch.testing.assert_close(y, torch.einsum("oc,nchw->nohw", layer.weight, a))
    assert_same_bits(layer.eval()(x), layer(x))
    set_condensation_progress(layer, 1)
    assert layer.condense().dropout == 0.5


L = LearnedGroupConv2d
S = SparseFeatureReactivation


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: L(8, 6), ValueError, "LearnedGroupConv2d: groups must divide out_channels, 6; got 4."),
        (lambda: L(6, 8), ValueError, "LearnedGroupConv2d: condense_factor must divide in_channels, 6; got 4."),
        (lambda: S(6, 8), ValueError, "SparseFeatureReactivation: groups must divide in_channels, 6; got 4."),
        (lambda: S(8, 6), ValueError, "SparseFeatureReactivation: condense_factor must divide out_channels, 6; got 4."),
        (lambda: L(8, 8, groups=0), ValueError, "LearnedGroupConv2d: groups must be at least 1; got 0."),
        (lambda: L(8.0, 8), TypeError, "LearnedGroupConv2d: in_channels must be an int; got 8.0."),
        (
            lambda: L(8, 8, dropout=1),
            ValueError,
            "LearnedGroupConv2d: dropout must be at least 0 and less than 1; got 1.",
        ),
        (
            lambda: L(8, 8, activation="gelu"),
            ValueError,
            "LearnedGroupConv2d: activation must be one of 'relu', 'hardswish'; got 'gelu'.",
        ),
        (
            lambda: set_condensation_progress(L(8, 8), 1.1),
            ValueError,
            "set_condensation_progress: progress must be from 0 to 1; got 1.1.",
        ),
        (
            lambda: set_condensation_progress(L(8, 8), float("nan")),
            ValueError,
            "set_condensation_progress: progress must be from 0 to 1; got nan.",
        ),
        (
            lambda: set_condensation_progress(L(8, 8), torch.tensor(0.5)),
            TypeError,
            "set_condensation_progress: progress must be a plain number; got [] (float32, cpu).",
        ),
        (lambda: group_lasso(3), TypeError, "group_lasso: model must be an nn.Module; got 3."),
        (lambda: condense(3), TypeError, "condense: model must be an nn.Module; got 3."),
        (
            lambda: condense(nn.Sequential(nn.ReLU()), classifier="0"),
            TypeError,
            "condense: classifier must name an nn.Linear; got ReLU.",
        ),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message


def test_only_batch_norms_can_be_picked_from():
    layer = LearnedGroupConv2d(8, 8)
    layer.norm = nn.GroupNorm(2, 8)
    set_condensation_progress(layer, 1.0)
    with pytest.raises(TypeError, match=r"condense: norm must be a BatchNorm; got GroupNorm."):
        layer.condense()


def test_condensed_in_16_bit_and_under_autocast():
    layer = used(LearnedGroupConv2d, 16, 8).float().eval()
    set_condensation_progress(layer, 1)
    made, x = layer.condense(), torch.randn(2, 16, 4, 4)
    due = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = made(x)
    assert y.dtype is torch.bfloat16
    torch.testing.assert_close(y.float(), due, rtol=0.05, atol=0.05)
    half = copy.deepcopy(made).bfloat16()
    torch.testing.assert_close(half(x.bfloat16()).float(), due, rtol=0.1, atol=0.1)
    assert made.norm.running_var.dtype is torch.float32 and half.index.dtype is torch.int64

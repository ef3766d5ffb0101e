"""Whole networks of the second pass of CondenseNet and MLDN: what they read, what they move, and how they are fed."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from second_pass.mldn import block_forward, forward, layer_forward, residual_stem
from second_pass.mldn_compare import agree
from second_pass.mldn_layers import Run, excite
from second_pass.mldn_plan import Block, Net, block_slots, made_up, net_slots
from second_pass.mldn_state import Name, group_mask, weights_from

FLOATS = ("conv", "linear", "gate", "gamma", "beta", "bias", "mean", "variance")
TWO = Net(stages=(2, 2), growth=(4, 8), paths=(2, 2), groups=2, condense=2, classes=5)
NETS = [
    pytest.param(replace(TWO, paths=None), id="condensenet"),
    pytest.param(TWO, id="mldn"),
    pytest.param(replace(TWO, paths=(2, 4), stem="resnet", rsdc=5, rsdc_bias=True), id="mldn-all"),
    pytest.param(replace(TWO, paths=(1, 4), stem="resnet", stem_shortcut=False, pairing="rotate"), id="no-shortcut"),
    pytest.param(replace(TWO, paths=None, version=2, hidden=6, head_excite=4), id="condensenetv2"),
    pytest.param(replace(TWO, version=2, hidden=6, hidden_act=False, excite_from=1, hswish_from=0), id="mldnv2"),
]


def _images(n: int = 3, size: int = 8) -> Tensor:
    return torch.randn(n, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("net", NETS)
def test_every_tensor_matters(net: Net) -> None:
    slots = net_slots(net)
    idle = set(slots)
    # The few units of a gate may all be off for one set of weights; what matters for some set is in use.
    for seed in range(8):
        weights = made_up(slots, seed=seed)
        leaves = {name: weights[name].requires_grad_() for name, slot in slots.items() if slot.kind in FLOATS}
        y, moved = forward(weights, _images(), net, training=False)
        assert y.shape == (3, 5) and not moved and torch.isfinite(y).all()
        grads = torch.autograd.grad(y.square().sum(), list(leaves.values()), allow_unused=True)
        idle -= {name for name, grad in zip(leaves, grads, strict=True) if grad is not None and grad.any()}
        idle -= {name for name, slot in slots.items() if slot.kind == "mask" and not weights[name].all()}
        idle -= {name for name, slot in slots.items() if slot.kind == "taps"}
        if not idle:
            break
    assert idle == set()


@pytest.mark.parametrize("net", NETS)
def test_condensed_networks_are_masked_networks(net: Net) -> None:
    weights = made_up(net_slots(net), seed=1)
    expected, _ = forward(weights, _images(), net, training=False)
    got, _ = forward(weights, _images(), net, training=False, condensed=True)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    if net.rsdc:
        moved = dict(weights)
        moved["blocks.1.layers.0.taps"] = made_up(net_slots(net), seed=2)["blocks.1.layers.0.taps"]
        assert not torch.allclose(forward(moved, _images(), net, training=False)[0], expected)


@pytest.mark.parametrize("net", NETS)
def test_training_moves_every_running_statistic(net: Net) -> None:
    slots = net_slots(net)
    weights = made_up(slots)
    y, moved = forward(weights, _images(), net, training=True)
    assert set(moved) == {name for name, slot in slots.items() if slot.kind in ("mean", "variance")}
    assert all(not torch.isclose(value, weights[name], rtol=1e-9).any() for name, value in moved.items())
    shifted = {name: value + 1 if name in moved else value for name, value in weights.items()}
    assert torch.equal(forward(shifted, _images(), net, training=True)[0], y)
    assert not torch.allclose(forward(weights, _images(), net, training=False)[0], y)


def test_norm_is_the_library_s() -> None:
    leaves = ("gamma", "beta", "mean", "variance")
    weights = {f"n.{leaf}": value for leaf, value in zip(leaves, torch.rand(4, 2, 5), strict=True)}
    x = torch.randn(3, 5, 4, 2, generator=torch.Generator().manual_seed(4))
    for training in (False, True):
        run = Run(weights, training)
        got = run.norm(x, "n", 1)
        gamma, beta, mean, variance = (
            weights[f"n.{leaf}"][1].clone() for leaf in ("gamma", "beta", "mean", "variance")
        )
        expected = F.batch_norm(x, mean, variance, gamma, beta, training, 0.1, 1e-5)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
        if training:
            torch.testing.assert_close(run.moved["n.mean"], torch.stack((weights["n.mean"][0], mean)))
            torch.testing.assert_close(run.moved["n.variance"], torch.stack((weights["n.variance"][0], variance)))


@pytest.mark.parametrize("activation", [F.relu, F.hardswish])
def test_one_path_without_groups_is_a_plain_dense_block(activation: Callable[[Tensor], Tensor]) -> None:
    block = Block(6, 4, 2, groups=1, condense=1, hswish=activation is F.hardswish)
    weights = made_up(block_slots(block))
    x = expected = torch.randn(2, 6, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    for layer in range(2):

        def norm(y: Tensor, name: str, at: str = f"layers.{layer}.") -> Tensor:
            leaves = (weights[f"{at}{name}.{leaf}"][0] for leaf in ("mean", "variance", "gamma", "beta"))
            return activation(F.batch_norm(y, *leaves))

        y = F.conv2d(norm(expected, "norm1"), weights[f"layers.{layer}.squeeze"][0, :, :, None, None])
        y = F.conv2d(norm(y, "norm2"), weights[f"layers.{layer}.conv"][0], padding=1)
        expected = torch.cat((expected, y), 1)
    torch.testing.assert_close(block_forward(Run(weights, False), x, block), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("net", [TWO, replace(TWO, version=2, hidden=6, head_excite=4, hswish_from=1, stem_stride=2)])
def test_stem_transition_and_head(net: Net) -> None:
    weights, blocks = made_up(net_slots(net)), net.blocks()
    run = Run(weights, False)
    x = F.conv2d(_images(), weights["stem"], None, net.stem_stride, 1)
    x = block_forward(run, x, blocks[0], "blocks.0.")
    side = 4 // net.stem_stride
    x = x.unflatten(2, (side, 2)).unflatten(4, (side, 2)).mean((3, 5))
    x = block_forward(run, x, blocks[1], "blocks.1.")
    leaves = (weights[f"head.norm.{leaf}"] for leaf in ("mean", "variance", "gamma", "beta"))
    y = F.relu(F.batch_norm(x, *leaves)).mean((2, 3))
    if net.version == 2:
        y = y * torch.sigmoid(F.relu(y @ weights["head.excite.down"].T) @ weights["head.excite.up"].T)
        y = F.hardswish(y @ weights["head.hidden"].T + weights["head.hidden_bias"])
    expected = y @ weights["head.classify"].T + weights["head.classify_bias"]
    torch.testing.assert_close(forward(weights, _images(), net, training=False)[0], expected, rtol=1e-10, atol=1e-10)


def test_stem_leaves_the_rest_alone() -> None:
    for paths, share in (((2, 2), 4), ((4, 2), 2)):
        with_it = replace(TWO, stem="resnet", paths=paths)
        assert with_it.stem_share == share
        weights = made_up(net_slots(with_it))
        x = torch.randn(2, 8, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
        y = residual_stem(Run(weights, False), x, with_it)
        without = residual_stem(Run(weights, False), x, replace(with_it, stem_shortcut=False))
        assert torch.equal(y[:, share:], x[:, share:]) and torch.equal(without[:, share:], x[:, share:])
        torch.testing.assert_close(y[:, :share] - without[:, :share], x[:, :share])
        assert (without[:, :share] >= 0).all() and without[:, :share].any()


def test_gate_scales_whole_maps() -> None:
    x = _images(2, 4)
    weights = {"e.down": torch.eye(3, dtype=torch.float64), "e.up": 2 * torch.eye(3, dtype=torch.float64)}
    means = x.mean((2, 3), keepdim=True).clamp(min=0)
    torch.testing.assert_close(excite(Run(weights, False), x, "e"), x / (1 + torch.exp(-2 * means)))


def test_gate_comes_before_both_uses() -> None:
    block = Block(8, 8, 1, paths=2, version=2, groups=2, condense=2, excite=True)
    weights = made_up(block_slots(block))
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    weights["layers.0.excite.up"].zero_()
    halved = layer_forward(Run(weights, False), x, block, 0)
    weights["layers.0.conv"] *= 0.5
    torch.testing.assert_close(halved, layer_forward(Run(weights, False), x, replace(block, excite=False), 0))


def test_weights_from_a_state_dict() -> None:
    block = replace(TWO, rsdc=None).blocks()[1]
    slots = block_slots(block)
    wanted = made_up(slots)
    state = {f"body.{name.replace('layers.', 'l')}": value for name, value in wanted.items()}
    split = state.pop("body.l0.squeeze")
    state |= {f"body.l0.path{p}.squeeze": row[..., None, None] for p, row in enumerate(split)}
    state["body.l1.conv"] = state["body.l1.conv"].flatten(0, 1)
    state["body.l1.mask"] = state["body.l1.mask"].repeat(1, block.mid // block.groups, 1).flatten(0, 1)
    state["body.l1.norm1.num_batches_tracked"] = torch.zeros(())

    def names(name: str) -> Name:
        if name == "layers.0.squeeze":
            return "body.l0.path{p}.squeeze"
        if name == "layers.1.mask":
            return lambda state: group_mask(state["body.l1.mask"], block.paths, block.groups)
        return f"body.{name.replace('layers.', 'l')}"

    got = weights_from(state, slots, names, ("num_batches_tracked",))
    assert list(got) == list(wanted)
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    with pytest.raises(AssertionError, match="never read"):
        weights_from(state, slots, names)
    state["body.l1.mask"][0, 0] = 1 - state["body.l1.mask"][0, 0]
    with pytest.raises(AssertionError, match="differs inside a group"):
        weights_from(state, slots, names, ("num_batches_tracked",))


class _Dense(nn.Module):
    """One layer of a dense block, on torch's modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.BatchNorm2d(6), nn.BatchNorm2d(16)
        self.squeeze, self.third = nn.Conv2d(6, 16, 1, bias=False), nn.Conv2d(16, 4, 3, padding=1, bias=False)
        self.register_buffer("mask", torch.ones(16, 6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.squeeze(F.relu(self.first(x)))
        return torch.cat((x, self.third(F.relu(self.second(y)))), 1)


@pytest.mark.parametrize("training", [False, True])
def test_comparison_accepts_what_is_equal_and_nothing_else(training: bool) -> None:
    block = Block(6, 4, 1, groups=1, condense=1)
    leaves = {"gamma": "weight", "beta": "bias", "mean": "running_mean", "variance": "running_var"}
    keys = {f"layers.0.norm1.{ours}": f"first.{theirs}" for ours, theirs in leaves.items()}
    keys |= {f"layers.0.norm2.{ours}": f"second.{theirs}" for ours, theirs in leaves.items()}
    keys |= {"layers.0.squeeze": "squeeze.weight", "layers.0.conv": "third.weight"}

    def names(name: str) -> Name:
        return keys.get(name, lambda state: group_mask(state["mask"], 1, 1))

    x = torch.randn(3, 6, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    torch.manual_seed(9)
    agree(_Dense(), block, names, x, training=training)
    # A norm that neither follows nor moves its statistics, another epsilon, and half a gradient.
    wrong = [_Dense(), _Dense(), _Dense()]
    wrong[0].first.momentum = 0.0 if training else 0.1
    wrong[0].second.eps = 1e-5 if training else 1e-3
    wrong[1].first.eps = 1e-3
    wrong[2].second.register_forward_hook(lambda module, args, output: (output + output.detach()) / 2)
    for model in wrong:
        with pytest.raises(AssertionError):
            agree(model, block, names, x, training=training)

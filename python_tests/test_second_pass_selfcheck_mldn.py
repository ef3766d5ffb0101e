"""Pins the second pass of MLDN's blocks to what is known of them, without the package under test."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from second_pass.mldn import block_forward, partners
from second_pass.mldn_layers import Run, learned, reactivate, rsdc
from second_pass.mldn_orders import append_order, flat_concat, one_call_a_layer, path_major, undo
from second_pass.mldn_plan import Block, Slot, block_slots, made_up


def _random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _close(got: Tensor, expected: Tensor, tolerance: float = 1e-11) -> None:
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance * float(expected.detach().abs().max()))


FOUR = Block(16, 16, 3, paths=4, groups=2, condense=2)
BLOCKS = [
    pytest.param(FOUR, id="v1"),
    pytest.param(replace(FOUR, version=2), id="v2"),
    pytest.param(replace(FOUR, pairing="butterfly"), id="v1-butterfly"),
    pytest.param(replace(FOUR, pairing="rotate"), id="v1-rotate"),
    pytest.param(replace(FOUR, pairing="rotate", version=2), id="v2-rotate"),
    pytest.param(replace(FOUR, version=2, rsdc=5, rsdc_bias=True, hswish=True, excite=True), id="v2-all"),
    pytest.param(Block(16, 16, 2, paths=8, groups=1, condense=2, pairing="butterfly"), id="v1-eight"),
    pytest.param(Block(12, 4, 2, groups=2, condense=2, version=2), id="v2-alone"),
]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("block", BLOCKS)
def test_all_orders_are_one(block: Block, training: bool) -> None:
    weights, x = made_up(block_slots(block)), _random(2, block.channels, 4, 5)
    literal = Run(weights, training)
    expected = block_forward(literal, x, block)
    assert expected.shape == (2, block.out, 4, 5)
    assert bool(literal.moved) is training
    for order in (flat_concat, path_major, append_order):
        run = Run(weights, training)
        assert torch.equal(order(run, x, block), expected), order.__name__
        assert run.moved.keys() == literal.moved.keys()
        assert all(torch.equal(run.moved[name], value) for name, value in literal.moved.items())
    if block.version == 1:
        _close(one_call_a_layer(Run(weights, training), x, block), expected)


@pytest.mark.parametrize("pairing", ["xor1", "butterfly", "rotate"])
def test_partners(pairing: str) -> None:
    for paths in (2, 4, 8):
        for layer in range(4):
            found = partners(pairing, paths, layer)
            assert sorted(found) == list(range(paths))
            assert all(p != q for p, q in enumerate(found))
            assert pairing == "rotate" or all(found[q] == p for p, q in enumerate(found))
    assert partners("xor1", 1, 0) == [0]
    assert [partners("butterfly", 8, layer)[5] for layer in range(4)] == [4, 7, 1, 4]
    assert partners("xor1", 6, 1) == [1, 0, 3, 2, 5, 4]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("pairing", ["xor1", "butterfly", "rotate"])
def test_pairs_are_independent(pairing: str, version: int) -> None:
    block = replace(FOUR, pairing=pairing, version=version)
    weights, x = made_up(block_slots(block), pruned=False), _random(2, 16, 4, 4)
    moved = x.clone()
    moved[:, :8] += _random(2, 8, 4, 4, seed=2)
    before, after = (block_forward(Run(weights, True), value, block).chunk(4, 1) for value in (x, moved))
    reached = [not torch.equal(one, other) for one, other in zip(before, after, strict=True)]
    assert reached == [True, True, pairing != "xor1", pairing != "xor1"]


@pytest.mark.parametrize("version", [1, 2])
def test_a_path_keeps_its_partners_result_and_never_its_own(version: int) -> None:
    block = replace(FOUR, layers=1, version=version)
    weights = made_up(block_slots(block), pruned=False)
    third = weights["layers.0.conv"].requires_grad_()

    def origins(part: Tensor) -> list[int]:
        (grad,) = torch.autograd.grad(part.square().sum(), third, retain_graph=True)
        return [p for p in range(4) if grad[p].any()]

    for p, y in enumerate(block_forward(Run(weights, False), _random(2, 16, 4, 4), block).chunk(4, 1)):
        assert origins(y[:, 4:]) == [p ^ 1]
        assert origins(y[:, :4]) == ([p] if version == 2 else [])


def test_version_2_can_be_undone() -> None:
    for pairing in ("xor1", "rotate"):
        block = replace(FOUR, version=2, pairing=pairing)
        weights, x = made_up(block_slots(block)), _random(2, 16, 4, 4)
        run = Run(weights, True)
        _close(undo(Run(weights, True), block_forward(run, x, block), block), x)


def test_statistics_of_a_channel_are_the_same_for_all_who_read_it() -> None:
    weights, x = made_up(block_slots(FOUR)), _random(3, 16, 4, 5)
    for name in weights:
        if name.endswith((".mean", ".variance")):
            weights[name].zero_()
    for version in (1, 2):
        block = replace(FOUR, version=version)
        run = Run(made_up(block_slots(block)) | weights, True)
        block_forward(run, x, block)
        for leaf in ("mean", "variance"):
            early, late = (run.moved[f"layers.{layer}.norm1.{leaf}"] for layer in (1, 2))
            assert torch.allclose(early, late[:, : early.shape[1]], rtol=1e-12) is (version == 1)


@pytest.mark.parametrize("hswish", [False, True])
@pytest.mark.parametrize(("groups", "condense"), [(1, 3), (2, 3), (4, 3), (3, 2), (2, 6)])
def test_condensed_is_masked(groups: int, condense: int, hswish: bool) -> None:
    block = Block(36, 12, 2, 1, 2, groups=groups, groups3=1, condense=condense, hswish=hswish)
    weights, x = made_up(block_slots(block), seed=groups), _random(2, 36, 3, 4)
    expected = block_forward(Run(weights, False), x, block)
    assert not torch.allclose(expected, block_forward(Run(made_up(block_slots(block), pruned=False), False), x, block))
    _close(block_forward(Run(weights, False, condensed=True), x, block), expected)


def test_learned_groups_by_hand() -> None:
    weight, x = _random(6, 4), _random(2, 4, 3, 3, seed=2)
    y = learned(x, weight, torch.tensor([[1, 0, 1, 0], [0, 1, 1, 0]]).double())
    for o in range(6):
        one, other = (0, 2) if o % 2 == 0 else (1, 2)
        _close(y[:, o], weight[o, one] * x[:, one] + weight[o, other] * x[:, other])
    back = reactivate(x, weight, torch.tensor([[1, 0, 1, 0, 0, 0], [0, 0, 1, 0, 0, 1]]).double())
    _close(back[:, 0], weight[0, 0] * x[:, 0] + weight[0, 2] * x[:, 2])
    _close(back[:, 5], weight[5, 1] * x[:, 1] + weight[5, 3] * x[:, 3])
    _close(back[:, 2], torch.einsum("i,nihw->nhw", weight[2], x))
    assert not back[:, [1, 3, 4]].any()


@pytest.mark.parametrize(("k", "groups"), [(3, 1), (5, 2), (7, 3)])
def test_rsdc_is_the_sum_of_nine_shifted_inputs(k: int, groups: int) -> None:
    slots = {"weight": Slot("conv", (6, 12 // groups, 9)), "taps": Slot("taps", (6, 9), k), "bias": Slot("bias", (6,))}
    made = made_up(slots)
    x, share = _random(2, 12, 6, 5), 12 // groups
    padded = F.pad(x, (k // 2,) * 4)
    got = rsdc(x, made["weight"], made["taps"], made["bias"], k, groups)
    for o in range(6):
        first = o // (6 // groups) * share
        total = torch.zeros(2, 6, 5, dtype=torch.float64)
        for t, cell in enumerate(made["taps"][o].tolist()):
            dy, dx = divmod(cell, k)
            seen = padded[:, first : first + share, dy : dy + 6, dx : dx + 5]
            total += torch.einsum("i,nihw->nhw", made["weight"][o, :, t], seen)
        _close(got[:, o], total + made["bias"][o])
    if k == 3:
        _close(got, F.conv2d(x, made["weight"].view(6, -1, 3, 3), made["bias"], padding=1, groups=groups))

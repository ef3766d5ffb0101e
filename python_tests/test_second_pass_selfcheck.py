"""Pins the second passes to the published structures by exact counts, without the package under test."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from second_pass import mobilenetv2, multiception, nguyen, pydmobilenet
from second_pass.layers import batch_norm, depthwise
from second_pass.weights import RecordedWeights, Weights

Forward = Callable[..., Tensor]


def count(forward: Forward, size: int = 8, **options: Any) -> int:
    """Parameters; the size of the image is no matter to them."""
    weights = RecordedWeights(device="meta")
    forward(weights, torch.empty(1, 3, size, size, dtype=torch.float64, device="meta"), training=False, **options)
    return weights.count


def check(forward: Forward, size: int, params: int, macs: int | None, **options: Any) -> None:
    """Parameters and, where they are published to the last digit, multiply-adds at one size x size image."""
    if macs is None:
        assert count(forward, **options) == params
        return
    with FlopCounterMode(display=False) as counter:
        assert count(forward, size, **options) == params
    assert counter.get_total_flops() == 2 * macs


def millions(forward: Forward, size: int, **options: Any) -> float:
    with FlopCounterMode(display=False) as counter:
        count(forward, size, **options)
    return float(counter.get_total_flops() / 2e6)


# mid, depth, alpha, parameters for 10 classes, multiply-adds (None: published only in rounded form)
PYD = [
    ("dense", 29, 0.5, 221168, 33654016),
    ("depthwise", 29, 0.5, 79040, 13194496),
    ("depthwise", 29, 1, 142800, None),
    ("depthwise", 29, 1.5, 206560, 35714304),
    ("add", 29, 0.25, 59592, 10747136),
    ("add", 29, 0.5, 103904, None),
    ("add", 29, 0.75, 148216, None),
    ("add", 29, 1, 192528, 37184768),
    ("concat", 29, 0.25, 92520, None),
    ("concat", 29, 0.5, 169760, 28996864),
    ("concat", 29, 0.75, 247000, 42528000),
    ("dense", 56, 0.5, 434864, None),
    ("depthwise", 56, 0.5, 150608, 23405824),
    ("depthwise", 56, 1, 283248, 44877056),
    ("depthwise", 56, 1.5, 415888, None),
    ("add", 56, 0.25, 109152, 19035392),
    ("add", 56, 0.5, 200336, 36136192),
    ("add", 56, 0.75, 291520, None),
    ("add", 56, 1, 382704, 70337792),
    ("concat", 56, 0.25, 175008, 28472576),
    ("concat", 56, 0.5, 332048, None),
    ("concat", 56, 0.75, 489088, 81548544),
]


@pytest.mark.parametrize(("mid", "depth", "alpha", "params", "macs"), PYD)
def test_pydmobilenet_counts(mid: str, depth: int, alpha: float, params: int, macs: int | None) -> None:
    check(pydmobilenet.forward, 32, params, macs, mid=mid, depth=depth, alpha=alpha)


def test_pydmobilenet_other_readings() -> None:
    check(pydmobilenet.forward, 32, 59592 + 11610, None, mid="add", alpha=0.25, classes=100)
    check(pydmobilenet.forward, 32, 53664, None, mid="add", alpha=0.25, inner="in")
    check(pydmobilenet.forward, 32, 455656, None, mid="concat", depth=56, alpha=0.75, inner="in")
    check(pydmobilenet.forward, 32, 337008, 58639616, mid="add", depth=56, alpha=1, kernels=(7,))
    for alpha, params in ((0.25, 2231310), (0.5, 2798318), (0.75, 3365326)):
        wide: dict[str, Any] = {"widths": (64, 128, 256), "head": 1280, "classes": 1000}
        check(pydmobilenet.forward, 32, params, None, depth=56, alpha=alpha, **wide)


DEAD = {"dead_shortcuts": True}
MIDDLE_TOO = {"kernels": ((3, 5, 7), (3, 5, 7), (3, 3))}
BOTH_35 = {"kernels": ((3, 5), (3, 5), (3, 3))}
# arch, conv, further options, parameters for 10 classes, multiply-adds
MULTICEPTION = [
    ("resnet20", "standard", {}, 272474, 40813184),
    ("resnet20", "multiception", {}, 189434, 32408192),
    ("resnet20", "dsconv", {}, 166858, None),
    ("resnet20", "mixconv_dense", {}, 269848, 40064128),
    ("resnet20", "mixconv", {}, 172586, 26648192),
    ("resnet20", "multiception", {"last": "single"}, 177434, None),
    ("resnet20", "multiception", MIDDLE_TOO, 196074, None),
    ("resnet50", "standard", {}, 758554, None),
    ("resnet50", "multiception", {}, 509434, 85533312),
    ("resnet50", "dsconv", {}, 443498, 65366656),
    ("resnet50", "mixconv_dense", {}, 752188, None),
    ("resnet50", "mixconv", {}, 460426, 69786752),
    ("resnet50", "multiception", {"last": "single"}, 473434, None),
    ("resnet50", "multiception", BOTH_35, 500858, None),
    ("resnet50", "multiception", {"kernels": ((3, 7), (3, 7), (3, 3))}, 509690, None),
    ("resnet50", "multiception", {"kernels": ((5, 7), (5, 7), (3, 3))}, 515578, None),
    ("senet56", "standard", {}, 867866, 125759936),
    ("senet56", "multiception", {}, 585530, None),
    ("senet56", "dsconv", {}, 510922, 73501120),
    ("senet56", "mixconv_dense", {}, 860752, 123461824),
    ("senet56", "mixconv", {}, 530090, None),
    ("senet56", "multiception", {"last": "single"}, 544730, None),
    ("shakenet26_2x96d", "standard", {}, 26192906, 3776892672),
    ("shakenet26_2x96d", "multiception", {}, 16980714, 2566246144),
    ("shakenet26_2x96d", "dsconv", {}, 15451178, 2252025600),
    ("shakenet26_2x96d", "mixconv", {}, 15547034, 2279362304),
    ("shakenet26_2x96d", "standard", DEAD, 26777546, None),
    ("shakenet26_2x96d", "multiception", DEAD, 17565354, None),
    ("shakenet26_2x96d", "mixconv_dense", DEAD, 27065290, None),
]


@pytest.mark.parametrize(("arch", "conv", "options", "params", "macs"), MULTICEPTION)
def test_multiception_counts(arch: str, conv: str, options: dict[str, Any], params: int, macs: int | None) -> None:
    check(multiception.forward, 32, params, macs, arch=arch, conv=conv, **options)


@pytest.mark.parametrize(
    ("conv", "params", "macs"),
    [("standard", 2283994, 356335616), ("multiception", 2252634, None), ("dsconv", 2236330, 220049408)],
)
def test_multiception_mobilenetv2_counts(conv: str, params: int, macs: int | None) -> None:
    check(multiception.forward, 96, params, macs, arch="mobilenetv2", conv=conv)


def test_multiception_more_classes_and_larger_images() -> None:
    check(multiception.forward, 32, 515284, None, arch="resnet50", classes=100)
    check(multiception.forward, 32, 573784, 85596672, arch="resnet50", classes=1000)
    check(multiception.forward, 32, 17015364, 2566280704, arch="shakenet26_2x96d", classes=100)
    check(multiception.forward, 96, 758554, 1004323456, arch="resnet50", conv="standard")
    assert round(millions(multiception.forward, 96, arch="mobilenetv2"), 1) == 301.0


@pytest.mark.parametrize(
    ("arch", "digits", "macs"),
    [("resnet20", 2, 31.88), ("resnet50", 2, 85.00), ("senet56", 2, 95.64), ("shakenet26_2x96d", 1, 2559.9)],
)
def test_stride_on_the_depthwise_costs_what_is_published(arch: str, digits: int, macs: float) -> None:
    assert round(millions(multiception.forward, 32, arch=arch, stride_at="depthwise"), digits) == macs


def test_mobilenetv2_counts() -> None:
    check(mobilenetv2.forward, 224, 3504872, 300774272)
    check(mobilenetv2.forward, 224, 2354534, None, classes=102)
    check(mobilenetv2.forward, 224, 2236682, None, stem_stride=1, classes=10)


# dilations, split, width, activation, parameters for 102 classes, multiply-adds
NGUYEN = [
    ((1, 2, 3), False, "mobilenetv2", "prelu", 4467750, 577286272),
    ((1, 2, 3), True, "mobilenetv2", "prelu", 2370086, 299624832),
    ((1, 2, 3), False, "mobilenetv2", "prelu_shared", 4437961, 577286272),
    ((1, 2, 3), True, "mobilenetv2", "prelu_shared", 2354569, 299624832),
    ((1, 2), False, "mobilenetv2", "prelu", 3418918, 438455552),
    ((2, 3), False, "mobilenetv2", "prelu", 3418918, 438455552),
    ((1, 2, 3, 4), False, "mobilenetv2", "prelu", 5516582, None),
    ((1, 2, 3, 4), True, "mobilenetv2", "prelu", 2370086, 299624832),
    ((1, 2, 3), False, "table3", "prelu", 8620966, None),
    ((1, 2, 3), True, "table3", "prelu", 4435878, None),
    ((1, 2, 3), False, "table3", "relu6", 8581158, 835761664),
    ((1, 2, 3), True, "table3", "relu6", 4415334, 427931136),
    ((1, 2, 3, 4), False, "table3", "prelu", 10713510, 1039676928),
]


@pytest.mark.parametrize(("dilations", "split", "width", "activation", "params", "macs"), NGUYEN)
def test_nguyen_counts(
    dilations: tuple[int, ...], split: bool, width: str, activation: str, params: int, macs: int | None
) -> None:
    options: dict[str, Any] = {"dilations": dilations, "split": split, "width": width, "activation": activation}
    check(nguyen.forward, 224, params, macs, **options)


def test_nguyen_more_classes() -> None:
    check(nguyen.forward, 224, 4666305, None, classes=257)
    check(nguyen.forward, 224, 5618088, 578435712, classes=1000)


NETWORKS = [
    pytest.param(pydmobilenet.forward, {"mid": mid, "alpha": 0.25}, id=mid)
    for mid in ("add", "concat", "depthwise", "dense")
]
NETWORKS += [
    pytest.param(multiception.forward, {"arch": arch, "conv": conv}, id=f"{arch}-{conv}")
    for arch, conv in (
        ("resnet20", "multiception"),
        ("resnet20", "mixconv"),
        ("resnet20", "mixconv_dense"),
        ("senet56", "dsconv"),
        ("mobilenetv2", "multiception"),
        ("shakenet26_2x96d", "multiception"),
    )
]
NETWORKS += [
    pytest.param(nguyen.forward, {"split": split}, id=f"nguyen-{'split' if split else 'all'}")
    for split in (False, True)
]


@pytest.mark.parametrize(("forward", "options"), NETWORKS)
def test_read_back_weights_give_the_same_and_all_matter(forward: Forward, options: dict[str, Any]) -> None:
    x = torch.randn(2, 3, 24, 20, dtype=torch.float32, generator=torch.Generator().manual_seed(1))
    idle: set[int] | None = None
    # The few units of a squeeze may all be off for one set of weights; what matters for some set is in use.
    for seed in range(16):
        recorded = RecordedWeights(seed=seed, dtype=torch.float32)
        expected = forward(recorded, x, training=False, **options)
        assert torch.isfinite(expected).all()
        leaves = [value.detach().requires_grad_() for value in (*recorded.parameters, *recorded.buffers)]
        split = len(recorded.parameters)
        batch_counter = torch.zeros((), dtype=torch.long)
        weights = Weights(leaves[:split], [batch_counter, *leaves[split:]])
        got = forward(weights, x, training=False, **options)
        weights.finish()
        assert torch.equal(got, expected)
        got.square().sum().backward()
        still = {i for i, leaf in enumerate(leaves) if leaf.grad is None or not leaf.grad.any()}
        idle = still if idle is None else idle & still
        if not idle:
            break
    assert idle == set()


def test_training_follows_the_batch_and_not_the_buffers() -> None:
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    recorded = RecordedWeights()
    trained = pydmobilenet.forward(recorded, x, training=True)
    moved = [buffer + 1 for buffer in recorded.buffers]
    assert torch.equal(pydmobilenet.forward(Weights(recorded.parameters, moved), x, training=True), trained)
    evaluated = pydmobilenet.forward(Weights(recorded.parameters, recorded.buffers), x, training=False)
    assert not torch.allclose(evaluated, trained)
    assert not torch.allclose(pydmobilenet.forward(Weights(recorded.parameters, moved), x, training=False), evaluated)


@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_by_hand(training: bool) -> None:
    x = torch.randn(3, 5, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    recorded = RecordedWeights()
    got = batch_norm(recorded, x, training)
    gamma, beta = recorded.parameters
    mean, variance = (buffer.clone() for buffer in recorded.buffers)
    expected = F.batch_norm(x, mean, variance, gamma, beta, training=training, eps=1e-5)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("k", "d", "stride"), [(3, 1, 1), (3, 3, 2), (5, 2, 3), (7, 1, 2)])
def test_depthwise_is_the_sum_over_taps(k: int, d: int, stride: int) -> None:
    x = torch.randn(2, 7, 9, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    recorded = RecordedWeights()
    got = torch.cat(depthwise(recorded, x, (1, k, k), stride=stride, dilations=(1, d, d), split=True), 1)
    reach = d * (k - 1) // 2
    assert [weight.shape[0] for weight in recorded.parameters] == [3, 2, 2]
    ones, *others = recorded.parameters
    total = torch.zeros(2, 4, 9, 10, dtype=torch.float64)
    for u in range(k):
        for v in range(k):
            seen = F.pad(x[:, 3:], (reach,) * 4)[:, :, d * u : d * u + 9, d * v : d * v + 10]
            total += torch.cat(others)[:, 0, u, v, None, None] * seen
    whole = torch.cat((x[:, :3] * ones[:, 0], total), 1)
    torch.testing.assert_close(got, whole[:, :, ::stride, ::stride], rtol=1e-12, atol=1e-12)


def test_offset_shortcut_sees_the_next_diagonal_pixel() -> None:
    x = torch.arange(1.0, 21.0, dtype=torch.float64).view(1, 1, 4, 5)
    identity_norm = [torch.ones(2), torch.zeros(2)]
    weights = Weights([torch.ones(1, 1, 1, 1).double()] * 2 + identity_norm, [torch.zeros(2), torch.ones(2) - 1e-5])
    first, second = multiception.offset_shortcut(weights, x, 2, 2, False)[0]
    torch.testing.assert_close(first, torch.tensor([[1.0, 3, 5], [11, 13, 15]]).double(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(second, torch.tensor([[7.0, 9, 0], [17, 19, 0]]).double(), rtol=1e-6, atol=1e-6)


def test_strides_of_multiception_agree_in_evaluation_only() -> None:
    x = torch.randn(2, 3, 17, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    recorded = RecordedWeights()
    for training in (False, True):
        at: list[Tensor] = []
        for stride_at in ("pointwise", "depthwise"):
            again = Weights(recorded.parameters, recorded.buffers) if recorded.parameters else recorded
            at.append(multiception.forward(again, x, training=training, stride_at=stride_at))
        assert torch.allclose(at[0], at[1], rtol=1e-12, atol=1e-12) is not training


def test_one_undilated_branch_with_relu6_is_mobilenetv2() -> None:
    x = torch.randn(2, 3, 40, 33, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    recorded = RecordedWeights()
    expected = mobilenetv2.forward(recorded, x, training=True, classes=7)
    weights = Weights(recorded.parameters, recorded.buffers)
    got = nguyen.forward(weights, x, training=True, dilations=(1,), activation="relu6", classes=7)
    weights.finish()
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_shake_shake_mixes_as_told() -> None:
    a, b = (torch.full((2, 1, 1, 1), value, requires_grad=True) for value in (1.0, 10.0))
    mixed = multiception.mix(a, b, (0.25, torch.tensor([0.0, 0.75]).view(2, 1, 1, 1)))
    assert mixed.flatten().tolist() == pytest.approx([7.75, 7.75])
    mixed.sum().backward()
    assert a.grad is not None
    assert a.grad.flatten().tolist() == [0.0, 0.75]
    assert b.grad is not None
    assert b.grad.flatten().tolist() == [1.0, 0.25]


def test_weights_reject_what_does_not_fit() -> None:
    weights = Weights([torch.zeros(4, 1, 3, 3), torch.zeros(4)], [torch.zeros(4)])
    with pytest.raises(AssertionError, match=r"should be \(4, 1, 5, 5\), is \(4, 1, 3, 3\)"):
        weights.conv(4, 1, 5)
    weights.conv(4, 1, 3)
    with pytest.raises(AssertionError, match="1 of 2 parameters were never read"):
        weights.finish()
    weights.bias(4)
    with pytest.raises(AssertionError, match="1 of 1 buffers were never read"):
        weights.finish()
    with pytest.raises(AssertionError, match="all 2 parameters are used up"):
        weights.prelu(4)

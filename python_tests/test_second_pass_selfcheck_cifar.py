"""Pins the second pass of the networks that compression starts from to the totals in its description."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from second_pass import cifar, mobilenetv2
from second_pass.weights import RecordedWeights, Weights

Forward = Callable[..., Tensor]
# network, options, side of the image, weights and multiply-adds of its convolutions without the first, weights of that
NETWORKS: list[tuple[Forward, dict[str, Any], int, int, int, int]] = [
    (cifar.cifar_resnet, {}, 32, 267264, 40108032, 432),
    (cifar.cifar_resnet, {"depth": 56}, 32, 847872, 125042688, 432),
    (cifar.vgg16, {}, 32, 14708736, 311427072, 1728),
    (cifar.resnet18, {}, 32, 11157504, 553648128, 1728),
    (cifar.densenet121, {}, 16, 6860800, 708837376, 1728),
    (cifar.mobilenetv2_16, {}, 16, 2188896, 251609088, 864),
]
NAMES = ["resnet20", "resnet56", "vgg16", "resnet18", "densenet121", "mobilenetv2"]


@pytest.mark.parametrize(("forward", "options", "side", "params", "macs", "first"), NETWORKS, ids=NAMES)
def test_totals(
    forward: Forward, options: dict[str, Any], side: int, params: int, macs: int, first: int, monkeypatch: Any
) -> None:
    for module in (cifar, mobilenetv2):
        # Norms have no multiply-adds of their own, and under the counter their arithmetic is most of the time.
        monkeypatch.setattr(module, "batch_norm", lambda w, x, training: x + w.bn(x.shape[1])[0][:, None, None])
    weights = RecordedWeights(device="meta")
    image = torch.empty(1, 3, side, side, dtype=torch.float64, device="meta")
    with FlopCounterMode(display=False) as counter:
        y = forward(weights, image, training=False, **options)
    convolutions = [value for value in weights.parameters if value.dim() == 4]
    assert convolutions[0].numel() == first
    assert sum(value.numel() for value in convolutions) == params + first
    flops = counter.get_flop_counts()["Global"]
    assert flops[torch.ops.aten.convolution] == 2 * (macs + first * side**2)
    assert y.shape == (1, 120 if side == 16 else 10)


def test_known_sizes_of_whole_networks() -> None:
    sizes = ((cifar.cifar_resnet, 269722), (cifar.resnet18, 11173962))
    for forward, params in sizes:
        weights = RecordedWeights(device="meta")
        forward(weights, torch.empty(1, 3, 8, 8, dtype=torch.float64, device="meta"), training=False)
        assert weights.count == params


@pytest.mark.parametrize(
    ("forward", "shape"), [(cifar.cifar_resnet, (2, 3, 12, 10)), (cifar.mobilenetv2_16, (2, 3, 4, 6))]
)
def test_read_back_weights_give_the_same_and_all_matter(forward: Forward, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    recorded = RecordedWeights(dtype=torch.float32)
    expected = forward(recorded, x, training=False)
    leaves = [value.detach().requires_grad_() for value in (*recorded.parameters, *recorded.buffers)]
    split = len(recorded.parameters)
    weights = Weights(leaves[:split], leaves[split:])
    got = forward(weights, x, training=False)
    weights.finish()
    assert torch.equal(got, expected)
    got.square().sum().backward()
    assert all(leaf.grad is not None and leaf.grad.any() for leaf in leaves)


@pytest.mark.parametrize(("padding", "before"), [("both", 8), ("after", 0)])
def test_shortcuts_have_every_second_pixel_and_zeros(padding: str, before: int) -> None:
    seen: list[Tensor] = []

    def watched(w: Weights, x: Tensor, out: int, stride: int, shortcut: cifar.Shortcut, training: bool) -> Tensor:
        if stride == 2:
            seen.append(shortcut(w, x, out, stride))
            return seen[-1]
        return x

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cifar, "basic_block", watched)
        x = torch.randn(1, 3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        recorded = RecordedWeights()
        cifar.cifar_resnet(recorded, x, training=False, padding=padding)
    once, twice = seen
    stem = Weights(recorded.parameters[:3], recorded.buffers[:2])
    y = F.relu(cifar.batch_norm(stem, cifar.conv(stem, x, 16, 3), False))
    assert once.shape == (1, 32, 3, 4) and twice.shape == (1, 64, 2, 2)
    assert torch.equal(once[:, before : before + 16], y[:, :, ::2, ::2])
    assert not once[:, :before].any() and not once[:, before + 16 :].any()
    assert torch.equal(twice[:, 2 * before : 2 * before + 32], once[:, :, ::2, ::2])

"""Multiception networks (Bao et al.): five skeletons, in which one 3x3 convolution a block is replaced."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import mobilenetv2
from .layers import batch_norm, classify, conv, depthwise, portions
from .weights import Weights

KERNELS = ((3, 5, 7), (3, 5), (3, 3))
Layer = Callable[[Weights, Tensor, int, int, Sequence[int]], Tensor]
# One coefficient, or a pair (forward, backward); each a number or a tensor that broadcasts against (N, C, H, W).
Coefficient = Any
Shake = Callable[[int, Tensor], Coefficient] | Sequence[Coefficient]


def replaced_layer(conv_kind: str, stride_at: str, training: bool) -> Layer:
    """layer(weights, x, out, stride, kernels): what stands in for the first 3x3 of a block, its batch norm included."""

    def layer(w: Weights, x: Tensor, out: int, stride: int, kernels: Sequence[int]) -> Tensor:
        if conv_kind == "standard":
            return batch_norm(w, conv(w, x, out, 3, stride=stride), training)
        if conv_kind == "dsconv":
            (y,) = depthwise(w, x, (3,), stride=stride)
            return batch_norm(w, conv(w, y, out, 1, bias=True), training)
        if conv_kind == "mixconv_dense":
            inputs = torch.split(x, portions(x.shape[1], 3), 1)
            triples = zip(inputs, portions(out, 3), (3, 5, 7), strict=True)
            return torch.cat([conv(w, part, n, k, stride=stride) for part, n, k in triples], 1)
        # "Split depthwise 3/5/7, BN, 1x1, BN" leaves open for mixconv whether the 1x1 has a bias and the stride:
        # the published parameters and multiply-adds are those of both, as in multiception.
        assert conv_kind in ("mixconv", "multiception"), conv_kind
        split = conv_kind == "mixconv"
        early = stride if stride_at == "depthwise" else 1
        y = torch.cat(depthwise(w, x, (3, 5, 7) if split else kernels, stride=early, split=split), 1)
        y = batch_norm(w, y, training)
        return batch_norm(w, conv(w, y, out, 1, stride=stride // early, bias=True), training)

    return layer


def forward(
    weights: Weights,
    x: Tensor,
    *,
    training: bool,
    arch: str = "resnet20",
    conv: str = "multiception",
    kernels: Sequence[Sequence[int]] = KERNELS,
    last: str = "double",
    stride_at: str = "pointwise",
    shake: Shake | None = None,
    dead_shortcuts: bool = False,
    classes: int = 10,
) -> Tensor:
    """Logits of a Multiception network.

    Args:
        weights: tensors in data-flow order.
        x: (N, 3, H, W).
        training: batch statistics instead of running ones, and given instead of even mixing in Shake-Shake.
        arch: "resnet20", "resnet50", "senet56", "shakenet26_2x96d" or "mobilenetv2".
        conv: "standard", "dsconv", "mixconv", "mixconv_dense" (not for mobilenetv2) or "multiception".
        kernels: branches of the three stages, of which "multiception" alone takes notice; mobilenetv2 uses two.
        last: "single" keeps only the first branch of the last stage.
        stride_at: where "multiception" and "mixconv" have their stride, "pointwise" or "depthwise".
        shake: for shakenet26_2x96d in training, the share of the first branch, block by block: shake[i] or
            shake(i, x) with x the block's input. A pair holds the share forward and the share backward.
        dead_shortcuts: for shakenet26_2x96d, `weights` also holds the shortcuts that no block uses.
        classes: number of logits.
    """
    stages = [*kernels[:2], kernels[2][:1] if last == "single" else kernels[2]]
    layer = replaced_layer(conv, stride_at, training)
    if arch == "mobilenetv2":
        assert conv != "mixconv_dense", "mixconv_dense is not defined for mobilenetv2"
        return mobilenet(weights, x, layer, stages, classes, training)
    if arch == "shakenet26_2x96d":
        return shakenet(weights, x, layer, stages, shake, dead_shortcuts, classes, training)
    blocks = {"resnet20": 3, "resnet50": 8, "senet56": 9}[arch]
    return resnet(weights, x, layer, stages, blocks, arch == "senet56", classes, training)


def resnet(
    w: Weights,
    x: Tensor,
    layer: Layer,
    stages: Sequence[Sequence[int]],
    blocks: int,
    squeeze: bool,
    classes: int,
    training: bool,
) -> Tensor:
    x = F.relu(batch_norm(w, conv(w, x, 16, 3), training))
    for stage, (width, kernels) in enumerate(zip((16, 32, 64), stages, strict=True)):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            y = F.relu(layer(w, x, width, stride, kernels))
            y = batch_norm(w, conv(w, y, width, 3), training)
            if squeeze:
                y = y * excitation(w, y, 8)
            if x.shape[1] != width:
                x = batch_norm(w, conv(w, x, width, 1, stride=stride), training)
            x = F.relu(x + y)
    return classify(w, x, classes)


def excitation(w: Weights, x: Tensor, reduction: int) -> Tensor:
    c = x.shape[1]
    gate = F.relu(F.linear(x.mean((2, 3)), w.linear(c // reduction, c)))
    return torch.sigmoid(F.linear(gate, w.linear(c, c // reduction)))[:, :, None, None]


def shakenet(
    w: Weights,
    x: Tensor,
    layer: Layer,
    stages: Sequence[Sequence[int]],
    shake: Shake | None,
    dead_shortcuts: bool,
    classes: int,
    training: bool,
) -> Tensor:
    x = conv(w, x, 16, 3, bias=True)
    index = 0
    for stage, (width, kernels) in enumerate(zip((96, 192, 384), stages, strict=True)):
        for block in range(4):
            stride = 2 if stage > 0 and block == 0 else 1
            branches = []
            for _ in range(2):
                y = F.relu(layer(w, F.relu(x), width, stride, kernels))
                branches.append(batch_norm(w, conv(w, y, width, 3), training))
            share: Coefficient = 0.5
            if training:
                assert shake is not None, "Shake-Shake in training needs its coefficients"
                share = shake(index, x) if callable(shake) else shake[index]
            index += 1
            if x.shape[1] != width:
                x = offset_shortcut(w, x, width, stride, training)
            elif dead_shortcuts:
                offset_shortcut(w, x, width, stride, training)
            x = x + mix(branches[0], branches[1], share)
    # The description is silent between the last sum and the pool; a pre-activation network as published ends in ReLU.
    return classify(w, F.relu(x), classes)


def mix(a: Tensor, b: Tensor, share: Coefficient) -> Tensor:
    forward_share, backward_share = share if isinstance(share, tuple) else (share, share)
    backward: Tensor = backward_share * a + (1 - backward_share) * b
    ahead: Tensor = forward_share * a + (1 - forward_share) * b
    return backward + (ahead - backward).detach()


def offset_shortcut(w: Weights, x: Tensor, out: int, stride: int, training: bool) -> Tensor:
    x = F.relu(x)
    # "1-pixel-offset": the second subsampling starts one pixel further down and right, with zeros past the border.
    moved = F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
    halves = [conv(w, part[:, :, ::stride, ::stride], out // 2, 1) for part in (x, moved)]
    return batch_norm(w, torch.cat(halves, 1), training)


def mobilenet(
    w: Weights, x: Tensor, layer: Layer, stages: Sequence[Sequence[int]], classes: int, training: bool
) -> Tensor:
    x = mobilenetv2.stem(w, x, 1, training)
    for number, (expansion, out, stride) in enumerate(mobilenetv2.blocks()):
        if number > 2:
            x = mobilenetv2.inverted_residual(w, x, expansion, out, stride, training)
            continue
        y = mobilenetv2.expand(w, x, expansion, training)
        # "Layer, ReLU, another BN" in this order and with plain ReLU, though the rest of the network has ReLU6.
        y = F.relu(layer(w, y, out, stride, stages[min(number, 1)]))
        y = batch_norm(w, y, training)
        x = x + y if stride == 1 and x.shape[1] == out else y
    return mobilenetv2.head(w, x, classes, training)

"""The five networks that layer-wise differentiable compression starts from, uncompressed and at their small inputs."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from . import mobilenetv2
from .layers import batch_norm, classify, conv
from .weights import Weights

# At 16x16 the maps are halved once.
MOBILENETV2_16 = tuple((t, c, n, 2 if c == 160 else 1) for t, c, n, _ in mobilenetv2.STAGES)
Shortcut = Callable[[Weights, Tensor, int, int], Tensor]


def basic_block(w: Weights, x: Tensor, out: int, stride: int, shortcut: Shortcut, training: bool) -> Tensor:
    y = F.relu(batch_norm(w, conv(w, x, out, 3, stride=stride), training))
    y = batch_norm(w, conv(w, y, out, 3), training)
    if stride != 1 or x.shape[1] != out:
        x = shortcut(w, x, out, stride)
    return F.relu(y + x)


def cifar_resnet(
    weights: Weights, x: Tensor, *, training: bool, depth: int = 20, classes: int = 10, padding: str = "both"
) -> Tensor:
    """ResNet for 32x32 with parameter-free shortcuts: every second pixel, and zeros for the channels that are new.

    `padding` says where the zeros stand: half before and half after the old channels ("both"), or all after ("after").
    """
    blocks, rest = divmod(depth - 2, 6)
    assert rest == 0, f"depth must be 6 n + 2, is {depth}"

    def shortcut(_: Weights, x: Tensor, out: int, stride: int) -> Tensor:
        new = out - x.shape[1]
        before = {"both": new // 2, "after": 0}[padding]
        return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, before, new - before))

    x = F.relu(batch_norm(weights, conv(weights, x, 16, 3), training))
    for stage, width in enumerate((16, 32, 64)):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            x = basic_block(weights, x, width, stride, shortcut, training)
    return classify(weights, x, classes)


def resnet18(weights: Weights, x: Tensor, *, training: bool, classes: int = 10) -> Tensor:
    """ResNet18 with a 3x3 stem of stride 1 and no pool behind it; its projections are 1x1 convolutions with a norm."""

    def shortcut(w: Weights, x: Tensor, out: int, stride: int) -> Tensor:
        return batch_norm(w, conv(w, x, out, 1, stride=stride), training)

    x = F.relu(batch_norm(weights, conv(weights, x, 64, 3), training))
    for stage, width in enumerate((64, 128, 256, 512)):
        for block in range(2):
            stride = 2 if stage > 0 and block == 0 else 1
            x = basic_block(weights, x, width, stride, shortcut, training)
    return classify(weights, x, classes)


def vgg16(weights: Weights, x: Tensor, *, training: bool, classes: int = 10, bias: bool = False) -> Tensor:
    """VGG16 with norms and one linear layer; its five pools bring 32x32 down to a pixel."""
    for width, layers in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(layers):
            x = F.relu(batch_norm(weights, conv(weights, x, width, 3, bias=bias), training))
        x = F.max_pool2d(x, 2)
    return classify(weights, x, classes)


def densenet121(weights: Weights, x: Tensor, *, training: bool, classes: int = 120, halved_after: int = 2) -> Tensor:
    """DenseNet121 for 16x16: a 3x3 stem without pool, and one transition that pools, after the given block (from 1)."""

    def pre(x: Tensor, out: int, k: int) -> Tensor:
        return conv(weights, F.relu(batch_norm(weights, x, training)), out, k)

    x = F.relu(batch_norm(weights, conv(weights, x, 64, 3), training))
    for number, layers in enumerate((6, 12, 24, 16), start=1):
        for _ in range(layers):
            x = torch.cat((x, pre(pre(x, 128, 1), 32, 3)), 1)
        if number < 4:
            x = pre(x, x.shape[1] // 2, 1)
            x = F.avg_pool2d(x, 2) if number == halved_after else x
    return classify(weights, F.relu(batch_norm(weights, x, training)), classes)


def mobilenetv2_16(weights: Weights, x: Tensor, *, training: bool, classes: int = 120) -> Tensor:
    x = mobilenetv2.stem(weights, x, 1, training)
    for expansion, out, stride in mobilenetv2.blocks(MOBILENETV2_16):
        x = mobilenetv2.inverted_residual(weights, x, expansion, out, stride, training)
    return mobilenetv2.head(weights, x, classes, training)

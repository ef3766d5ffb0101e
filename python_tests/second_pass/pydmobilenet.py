"""PydMobileNet (Hoang and Jo) and the ResNet and MobileNet baselines of the same skeleton."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .layers import batch_norm, classify, conv, depthwise
from .weights import Weights


def forward(
    weights: Weights,
    x: Tensor,
    *,
    training: bool,
    depth: int = 29,
    alpha: float = 0.5,
    mid: str = "concat",
    inner: str = "out",
    kernels: Sequence[int] = (3, 5, 7),
    widths: Sequence[int] = (32, 64, 128),
    head: int | None = None,
    classes: int = 10,
) -> Tensor:
    """Logits of PydMobileNet.

    Args:
        weights: tensors in data-flow order; the frozen gamma and beta of the input norm are the first two parameters.
        x: (N, 3, H, W).
        training: batch statistics instead of running ones.
        depth: 9 n + 2 for n blocks a stage.
        alpha: inner width as a share of the block's width.
        mid: "add" or "concat" of the depthwise `kernels`, one 3x3 "depthwise", or one "dense" 3x3.
        inner: whether the inner width follows the block's "out" (as released) or "in" width (as the paper's table).
        kernels: of "add" and "concat".
        widths: one per stage; the stem has the first.
        head: None, or the width of a 1x1 convolution with bias (after norm and ReLU) before the pooling.
        classes: number of logits.
    """
    blocks, rest = divmod(depth - 2, 9)
    assert rest == 0, f"depth must be 9 n + 2, is {depth}"
    # Only gamma and beta are said to be frozen, so in training the input norm uses batch statistics like any other.
    x = batch_norm(weights, x, training)
    x = conv(weights, x, widths[0], 3)
    for stage, width in enumerate(widths):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            d = int(alpha * (width if inner == "out" else x.shape[1]))
            y = F.relu(batch_norm(weights, x, training))
            y = conv(weights, y, d, 1)
            y = F.relu(batch_norm(weights, y, training))
            y = middle(weights, y, mid, kernels, stride)
            y = F.relu(batch_norm(weights, y, training))
            y = conv(weights, y, width, 1)
            y = batch_norm(weights, y, training)
            if stride == 2:
                x = batch_norm(weights, conv(weights, x, width, 1, stride=2), training)
            x = x + y
    if head is not None:
        x = F.relu(batch_norm(weights, x, training))
        x = conv(weights, x, head, 1, bias=True)
    return classify(weights, x, classes)


def middle(w: Weights, x: Tensor, mid: str, kernels: Sequence[int], stride: int) -> Tensor:
    if mid == "dense":
        return conv(w, x, x.shape[1], 3, stride=stride)
    if mid == "depthwise":
        return depthwise(w, x, (3,), stride=stride)[0]
    maps = depthwise(w, x, kernels, stride=stride)
    if mid == "concat":
        return torch.cat(maps, 1)
    assert mid == "add", mid
    total = maps[0]
    for extra in maps[1:]:
        total = total + extra
    return total

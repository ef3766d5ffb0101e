"""MobileNetV2 with a pyramid of dilated depthwise convolutions (Nguyen)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .layers import batch_norm, classify, conv, depthwise
from .weights import Weights

# (expansion, output width, stride) of layers 1 to 17, layer by layer.
V2_WIDTHS = (16, 24, 24, 32, 32, 32, 64, 64, 64, 64, 96, 96, 96, 160, 160, 160, 320)
# The paper's third table read literally: rows 8 (six layers) and 15 (three) have their output width throughout.
TABLE3_WIDTHS = (16, 24, 24, 32, 32, 32, 64, 96, 96, 96, 96, 96, 96, 160, 320, 320, 320)
HALVING_LAYERS = (2, 4, 7, 14)


def activate(w: Weights, x: Tensor, activation: str) -> Tensor:
    if activation == "relu6":
        return F.relu6(x)
    assert activation in ("prelu", "prelu_shared"), activation
    slope = w.prelu(x.shape[1] if activation == "prelu" else 1)
    return torch.where(x > 0, x, slope[:, None, None] * x)


def forward(
    weights: Weights,
    x: Tensor,
    *,
    training: bool,
    dilations: Sequence[int] = (1, 2, 3),
    split: bool = False,
    width: str = "mobilenetv2",
    activation: str = "prelu",
    classes: int = 102,
) -> Tensor:
    """Logits of the dilated MobileNetV2.

    Args:
        weights: tensors in data-flow order; a PReLU slope follows the batch norm before it.
        x: (N, 3, H, W).
        training: batch statistics instead of running ones.
        dilations: one 3x3 depthwise branch each.
        split: branches share the expanded channels out among them instead of all seeing all.
        width: "mobilenetv2" or "table3".
        activation: "prelu" (a slope per channel), "prelu_shared" (one per activation), or "relu6".
        classes: number of logits.
    """
    widths = {"mobilenetv2": V2_WIDTHS, "table3": TABLE3_WIDTHS}[width]
    x = activate(weights, batch_norm(weights, conv(weights, x, 32, 3, stride=2), training), activation)
    for layer, out in enumerate(widths, start=1):
        stride = 2 if layer in HALVING_LAYERS else 1
        y = x
        if layer > 1:
            y = batch_norm(weights, conv(weights, y, 6 * x.shape[1], 1), training)
            y = activate(weights, y, activation)
        maps = depthwise(weights, y, (3,) * len(dilations), stride=stride, dilations=dilations, split=split)
        # Batch norm and PReLU of the concatenation: the same as one of each per branch.
        y = activate(weights, batch_norm(weights, torch.cat(maps, 1), training), activation)
        y = batch_norm(weights, conv(weights, y, out, 1), training)
        x = x + y if stride == 1 and x.shape[1] == out else y
    x = activate(weights, batch_norm(weights, conv(weights, x, 1280, 1), training), activation)
    return classify(weights, x, classes)

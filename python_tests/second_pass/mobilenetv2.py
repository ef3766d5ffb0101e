"""MobileNetV2 (Sandler et al.) as it stands, the baseline of the dilated networks."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from .layers import batch_norm, classify, conv, depthwise
from .weights import Weights

# expansion, width, repeats, stride of the first
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def blocks(stages: Sequence[tuple[int, int, int, int]] = STAGES) -> list[tuple[int, int, int]]:
    """(expansion, width, stride) of each inverted residual."""
    return [(t, c, s if repeat == 0 else 1) for t, c, n, s in stages for repeat in range(n)]


def expand(w: Weights, x: Tensor, expansion: int, training: bool) -> Tensor:
    if expansion == 1:
        return x
    return F.relu6(batch_norm(w, conv(w, x, x.shape[1] * expansion, 1), training))


def inverted_residual(w: Weights, x: Tensor, expansion: int, out: int, stride: int, training: bool) -> Tensor:
    y = expand(w, x, expansion, training)
    (y,) = depthwise(w, y, (3,), stride=stride)
    y = F.relu6(batch_norm(w, y, training))
    y = batch_norm(w, conv(w, y, out, 1), training)
    return x + y if stride == 1 and x.shape[1] == out else y


def stem(w: Weights, x: Tensor, stride: int, training: bool) -> Tensor:
    return F.relu6(batch_norm(w, conv(w, x, 32, 3, stride=stride), training))


def head(w: Weights, x: Tensor, classes: int, training: bool) -> Tensor:
    # No dropout: the description has none.
    x = F.relu6(batch_norm(w, conv(w, x, 1280, 1), training))
    return classify(w, x, classes)


def forward(weights: Weights, x: Tensor, *, training: bool, stem_stride: int = 2, classes: int = 1000) -> Tensor:
    """Logits of MobileNetV2 at width 1 for x (N, 3, H, W); `training` selects batch statistics."""
    x = stem(weights, x, stem_stride, training)
    for expansion, out, stride in blocks():
        x = inverted_residual(weights, x, expansion, out, stride, training)
    return head(weights, x, classes, training)

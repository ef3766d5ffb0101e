"""DenseNet-121 for 16x16 images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightkernels._core.spec import require
from lightkernels.models.registry import register
from lightkernels.nn._arguments import positive_int

DENSENET121 = (6, 12, 24, 16)
GROWTH, BOTTLENECK = 32, 4


class DenseLayer(nn.Module):
    """BN, ReLU, 1x1 to four times the growth, BN, ReLU, 3x3 to the growth, appended to the input."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        middle = BOTTLENECK * GROWTH
        self.norm1, self.act1 = nn.BatchNorm2d(in_channels), nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, middle, 1, bias=False)
        self.norm2, self.act2 = nn.BatchNorm2d(middle), nn.ReLU()
        self.conv2 = nn.Conv2d(middle, GROWTH, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv2(self.act2(self.norm2(self.conv1(self.act1(self.norm1(x))))))
        return torch.cat((x, new), 1)


class DenseNet(nn.Module):
    """3x3 stem, dense blocks with a transition between each two, BN, ReLU, mean over the map, classifier."""

    def __init__(self, blocks: tuple[int, ...], num_classes: int, stride_after: int) -> None:
        super().__init__()
        width = 2 * GROWTH
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        stages: list[nn.Module] = []
        for number, layers in enumerate(blocks, 1):
            for _ in range(layers):
                stages.append(DenseLayer(width))
                width += GROWTH
            if number < len(blocks):
                stages += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width // 2, 1, bias=False)]
                width //= 2
                if number == stride_after:
                    stages.append(nn.AvgPool2d(2))
        self.stages = nn.Sequential(*stages)
        self.norm, self.act = nn.BatchNorm2d(width), nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.pool(self.act(self.norm(self.stages(self.stem(x))))).flatten(1))
        return out


def densenet121_16(num_classes: int = 120, *, stride_after: int = 2) -> DenseNet:
    """DenseNet-121 (Huang et al. 2017) for 16x16 images: no stride in the stem, and one transition that halves the map.

    Shapes: ``[N, 3, H, W]`` to ``[N, num_classes]``; the published size is 16x16.

    Args:
        stride_after: the block, 1 to 3, after which the map is halved. The papers do not tell; 2 is assumed.

    Raises TypeError and ValueError for other arguments.

    Equivalent to: ``create_model("densenet121_16", num_classes=120)``   (the default arguments)

    >>> import torch
    >>> from lightkernels.models import count, create_model
    >>> with torch.device("meta"):
    ...     network = create_model("densenet121_16", num_classes=120)
    >>> count(network, (3, 16, 16))
    Count(params=7069176, ops=709402624)
    """
    positive_int("densenet121_16", "num_classes", num_classes)
    positive_int("densenet121_16", "stride_after", stride_after)
    require(stride_after <= 3, "densenet121_16", "stride_after", "be 1, 2 or 3", stride_after)
    return DenseNet(DENSENET121, num_classes, stride_after)


register("densenet121_16", densenet121_16)

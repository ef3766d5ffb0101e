"""The networks for 32x32 images that the compression papers start from: ResNet, VGG16."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from lightkernels._core.spec import require
from lightkernels.models.registry import register
from lightkernels.nn._arguments import positive_int

Shortcut = Literal["pad", "project"]
VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def conv_norm(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> tuple[nn.Conv2d, nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
    return conv, nn.BatchNorm2d(out_channels)


class PadShortcut(nn.Module):
    """Every second pixel of the input, and zeros for the channels that it lacks: half before and half after."""

    def __init__(self, missing: int, stride: int) -> None:
        super().__init__()
        self.before, self.after, self.stride = missing // 2, missing - missing // 2, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """3x3, BN, ReLU, 3x3, BN, plus the shortcut, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv_norm(in_channels, out_channels, 3, stride)
        self.act1 = nn.ReLU()
        self.conv2, self.norm2 = conv_norm(out_channels, out_channels, 3)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            if shortcut == "pad":
                self.shortcut = PadShortcut(out_channels - in_channels, stride)
            else:
                self.shortcut = nn.Sequential(*conv_norm(in_channels, out_channels, 1, stride))
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.act1(self.norm1(self.conv1(x)))))
        out: Tensor = self.act2(y + self.shortcut(x))
        return out


class BasicResNet(nn.Module):
    """3x3 stem, stages of basic blocks of which all but the first halve the map, mean over the map, classifier."""

    def __init__(self, widths: tuple[int, ...], blocks: int, num_classes: int, shortcut: Shortcut) -> None:
        super().__init__()
        width = widths[0]
        self.stem = nn.Sequential(*conv_norm(3, width, 3), nn.ReLU())
        stages: list[nn.Module] = []
        for number, channels in enumerate(widths):
            made: list[nn.Module] = []
            for index in range(blocks):
                made.append(BasicBlock(width, channels, 2 if index == 0 and number > 0 else 1, shortcut))
                width = channels
            stages.append(nn.Sequential(*made))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.pool(self.stages(self.stem(x))).flatten(1))
        return out


class VGG(nn.Module):
    """3x3 convolutions, each with BN and ReLU, a 2x2 maximum after each stage, mean over the map, classifier."""

    def __init__(self, stages: tuple[tuple[int, ...], ...], num_classes: int) -> None:
        super().__init__()
        width = 3
        made: list[nn.Module] = []
        for stage in stages:
            layers: list[nn.Module] = []
            for channels in stage:
                layers += [*conv_norm(width, channels, 3), nn.ReLU()]
                width = channels
            made.append(nn.Sequential(*layers, nn.MaxPool2d(2, 2)))
        self.stages = nn.Sequential(*made)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.pool(self.stages(x)).flatten(1))
        return out


def cifar_resnet(depth: int = 20, num_classes: int = 10) -> BasicResNet:
    """The ResNet for small images of He et al. 2016, Section 4.2, with shortcuts that have no parameters (option A).

    Shapes: ``[N, 3, H, W]`` to ``[N, num_classes]``; the published size is 32x32.

    Args:
        depth: 6 n + 2 layers, n blocks a stage: 20, 32, 44, 56 and 110 are published.

    Raises TypeError and ValueError for other arguments.

    Equivalent to: ``create_model("cifar_resnet20", num_classes=10)``   (the default arguments)

    >>> from lightkernels.models import cifar_resnet, count
    >>> count(cifar_resnet(20), (3, 32, 32))
    Count(params=269722, ops=40551040)
    """
    positive_int("cifar_resnet", "depth", depth)
    positive_int("cifar_resnet", "num_classes", num_classes)
    require(depth >= 8 and depth % 6 == 2, "cifar_resnet", "depth", "be 6 n + 2 (20, 56)", depth)
    return BasicResNet((16, 32, 64), (depth - 2) // 6, num_classes, "pad")


def resnet18_cifar(num_classes: int = 10) -> BasicResNet:
    """ResNet-18 with a 3x3 stem of stride 1 and no pooling before the stages, for small images.

    Shapes: ``[N, 3, H, W]`` to ``[N, num_classes]``. Where a block halves the map, its shortcut is a 1x1 convolution.

    Equivalent to: ``create_model("resnet18_cifar", num_classes=10)``   (the default arguments)

    >>> import torch
    >>> from lightkernels.models import count, create_model
    >>> with torch.device("meta"):
    ...     network = create_model("resnet18_cifar", num_classes=10)
    >>> count(network, (3, 32, 32))
    Count(params=11173962, ops=555422720)
    """
    positive_int("resnet18_cifar", "num_classes", num_classes)
    return BasicResNet((64, 128, 256, 512), 2, num_classes, "project")


def vgg16_cifar(num_classes: int = 10) -> VGG:
    """The thirteen convolutions of VGG16 (Simonyan and Zisserman 2015), each with BatchNorm, and one linear layer.

    Shapes: ``[N, 3, H, W]`` to ``[N, num_classes]``, H and W at least 32.

    Equivalent to: ``create_model("vgg16_cifar", num_classes=10)``   (the default arguments)

    >>> import torch
    >>> from lightkernels.models import count, create_model
    >>> with torch.device("meta"):
    ...     network = create_model("vgg16_cifar", num_classes=10)
    >>> count(network, (3, 32, 32))
    Count(params=14724042, ops=313201664)
    """
    positive_int("vgg16_cifar", "num_classes", num_classes)
    return VGG(VGG16, num_classes)


register("cifar_resnet20", cifar_resnet, depth=20)
register("cifar_resnet56", cifar_resnet, depth=56)
register("resnet18_cifar", resnet18_cifar)
register("vgg16_cifar", vgg16_cifar)

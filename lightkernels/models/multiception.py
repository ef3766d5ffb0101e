"""The networks of the Multiception paper (Bao et al.), with its layer or with those it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightkernels._core.spec import fail_type, require
from lightkernels.models.mobilenetv2 import MOBILENETV2, MobileNetV2, plain_body
from lightkernels.models.registry import register
from lightkernels.models.shake_shake import OffsetShortcut, shake_shake
from lightkernels.nn import DepthwiseSeparable2d, Multiception2d
from lightkernels.nn._arguments import flag, odd_kernels, one_of, positive_int
from lightkernels.nn.multi_depthwise import split_channels
from lightkernels.nn.squeeze_excite import SqueezeExcite

Layer = Literal["standard", "dsconv", "mixconv", "mixconv_dense", "multiception"]
LAYERS = ("standard", "dsconv", "mixconv", "mixconv_dense", "multiception")
# blocks a stage: 6 n + 2 layers. "resnet50" is this small-image net of n = 8, not the bottleneck net of that name.
RESNETS = {"resnet20": 3, "resnet50": 8, "resnet56": 9, "resnet110": 18, "senet56": 9}
ARCHS = (*RESNETS, "shakenet26_2x96d", "mobilenetv2")
Kernels = Sequence[Sequence[int]]
KERNELS = ((3, 5, 7), (3, 5), (3, 3))
# (inputs, outputs, stride, kernels) -> layer with its norm
MakeLayer = Callable[[int, int, int, Sequence[int]], nn.Module]


class DenseMixConv2d(nn.Module):
    """The paper's own "MixConv": channels in and out split in three, a full 3x3, 5x5 and 7x7 convolution for each part.

    It is dense within a part and has no norm, so it costs what a 3x3 convolution costs; the published MixConv is
    depthwise and is ``conv="mixconv"`` here.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.widths = list(split_channels(in_channels, 3))
        self.branches = nn.ModuleList(
            nn.Conv2d(c, n, k, stride=stride, padding=k // 2, bias=False)
            for c, n, k in zip(self.widths, split_channels(out_channels, 3), (3, 5, 7), strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(x, self.widths, dim=1)
        return torch.cat([branch(part) for branch, part in zip(self.branches, parts, strict=True)], dim=1)


def _standard(inputs: int, outputs: int, stride: int, kernels: Sequence[int]) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def _dsconv(inputs: int, outputs: int, stride: int, kernels: Sequence[int]) -> nn.Module:
    return DepthwiseSeparable2d(inputs, outputs, 3, stride=stride, mid_norm=False, pointwise_bias=True)


def _mixconv(inputs: int, outputs: int, stride: int, kernels: Sequence[int]) -> nn.Module:
    return DepthwiseSeparable2d(
        inputs, outputs, (3, 5, 7), stride=stride, stride_at="pointwise", split=True, pointwise_bias=True
    )


def _mixconv_dense(inputs: int, outputs: int, stride: int, kernels: Sequence[int]) -> nn.Module:
    return DenseMixConv2d(inputs, outputs, stride)


def _multiception(inputs: int, outputs: int, stride: int, kernels: Sequence[int]) -> nn.Module:
    return Multiception2d(inputs, outputs, kernels, stride=stride)


MAKERS: dict[str, MakeLayer] = {
    "standard": _standard,
    "dsconv": _dsconv,
    "mixconv": _mixconv,
    "mixconv_dense": _mixconv_dense,
    "multiception": _multiception,
}


class BasicBlock(nn.Module):
    """Layer, ReLU, standard 3x3, BN, [SE], plus the shortcut, ReLU. Only the first 3x3 is the layer under study."""

    se: nn.Module | None
    shortcut: nn.Module | None

    def __init__(self, layer: nn.Module, inputs: int, outputs: int, stride: int, se_reduction: int | None) -> None:
        super().__init__()
        self.layer = layer
        self.conv = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.se = None if se_reduction is None else SqueezeExcite(outputs, se_reduction)
        self.shortcut = None
        if inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(functional.relu(self.layer(x))))
        if self.se is not None:
            y = self.se(y)
        return functional.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ShakeBranch(nn.Module):
    """ReLU, layer, ReLU, standard 3x3, BN."""

    def __init__(self, layer: nn.Module, outputs: int) -> None:
        super().__init__()
        self.layer = layer
        self.conv = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(functional.relu(self.layer(functional.relu(x)))))
        return out


class ShakeBlock(nn.Module):
    """Two branches mixed by Shake-Shake, plus the shortcut."""

    shortcut: nn.Module | None

    def __init__(self, layers: list[nn.Module], inputs: int, outputs: int, stride: int, dead: bool) -> None:
        super().__init__()
        self.branch1 = ShakeBranch(layers[0], outputs)
        self.branch2 = ShakeBranch(layers[1], outputs)
        self.uses_shortcut = inputs != outputs
        self.shortcut = OffsetShortcut(inputs, outputs, stride) if self.uses_shortcut or dead else None

    def forward(self, x: Tensor) -> Tensor:
        y = shake_shake(self.branch1(x), self.branch2(x), self.training)
        return y + (self.shortcut(x) if self.shortcut is not None and self.uses_shortcut else x)


class SmallImageNet(nn.Module):
    """Stem, three stages (the second and third halve the map), mean over the map, classifier."""

    def __init__(self, stem: nn.Module, stages: nn.Module, end: nn.Module, width: int, num_classes: int) -> None:
        super().__init__()
        self.stem = stem
        self.stages = stages
        self.end = end
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.pool(self.end(self.stages(self.stem(x)))).flatten(1))
        return out


def _stages(
    width: int, widths: Sequence[int], blocks: int, make_block: Callable[[int, int, int, int], nn.Module]
) -> nn.Sequential:
    """`make_block(stage, inputs, outputs, stride)` for every block of three stages."""
    stages: list[nn.Module] = []
    for stage, outputs in enumerate(widths):
        made: list[nn.Module] = []
        for index in range(blocks):
            made.append(make_block(stage, width, outputs, 2 if index == 0 and stage > 0 else 1))
            width = outputs
        stages.append(nn.Sequential(*made))
    return nn.Sequential(*stages)


def _resnet(arch: str, make: MakeLayer, kernels: Kernels, num_classes: int, se_reduction: int) -> nn.Module:
    reduction = se_reduction if arch == "senet56" else None

    def block(stage: int, inputs: int, outputs: int, stride: int) -> nn.Module:
        layer = make(inputs, outputs, stride, kernels[stage])
        return BasicBlock(layer, inputs, outputs, stride, reduction)

    stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    return SmallImageNet(stem, _stages(16, (16, 32, 64), RESNETS[arch], block), nn.Identity(), 64, num_classes)


def _shakenet(make: MakeLayer, kernels: Kernels, num_classes: int, dead: bool) -> nn.Module:
    def block(stage: int, inputs: int, outputs: int, stride: int) -> nn.Module:
        layers = [make(inputs, outputs, stride, kernels[stage]) for _ in range(2)]
        return ShakeBlock(layers, inputs, outputs, stride, dead)

    # The last sum has seen no activation, hence the ReLU before the mean.
    stem = nn.Conv2d(3, 16, 3, padding=1)
    return SmallImageNet(stem, _stages(16, (96, 192, 384), 4, block), nn.ReLU(), 384, num_classes)


def _mobilenetv2(make: MakeLayer, kernels: Kernels, num_classes: int) -> nn.Module:
    def body(index: int, hidden: int, outputs: int, stride: int) -> nn.Module:
        if index > 2:
            return plain_body(index, hidden, outputs, stride)
        layer = make(hidden, outputs, stride, kernels[min(index, 1)])
        return nn.Sequential(layer, nn.ReLU(), nn.BatchNorm2d(outputs))

    return MobileNetV2(MOBILENETV2, num_classes, "relu6", 1, body)


def multiception_net(
    arch: str = "resnet20",
    conv: Layer = "multiception",
    num_classes: int = 10,
    kernels: Kernels = KERNELS,
    last: Literal["double", "single"] = "double",
    count_dead: bool = False,
    *,
    se_reduction: int = 8,
) -> nn.Module:
    """The networks of the Multiception paper (Bao et al., Tables I to V).

    Shapes: ``[N, 3, H, W]`` to ``[N, num_classes]``; published for 32x32, MobileNetV2 for 96x96.

    Args:
        arch: ``"resnet20"``, ``"resnet50"``, ``"resnet56"``, ``"resnet110"`` (small-image nets of basic blocks),
            ``"senet56"``, ``"shakenet26_2x96d"`` or ``"mobilenetv2"`` (stem of stride 1).
        conv: the first 3x3 of every block: ``"standard"``, ``"dsconv"`` (depthwise 3x3 and pointwise), ``"mixconv"``
            (the published, depthwise MixConv), ``"mixconv_dense"`` (the paper's stand-in for it; not defined for
            MobileNetV2) or ``"multiception"``.
        kernels: of the Multiception layers of each stage. MobileNetV2 uses the first set in its first block and the
            second in the next two; its other blocks keep their own layers.
        last: the third stage: its set of kernels as given (``"double"``: two 3x3, as released) or only the first of the
            set (``"single"``: one 3x3, the paper's text).
        count_dead: Shake-Shake only: also build the shortcuts that the released code builds and never uses (584,640
            parameters in the paper's figures). They get no gradient.
        se_reduction: SeNet-56 only.

    Raises TypeError and ValueError for other arguments.

    Equivalent to: ``create_model("cifar_resnet20_multiception", num_classes=10)``   (the default arguments)

    >>> from lightkernels.models import count, multiception_net
    >>> count(multiception_net("resnet50"), (3, 32, 32))
    Count(params=509434, ops=85533312)
    """
    op = "multiception_net"
    one_of(op, "arch", arch, ARCHS)
    one_of(op, "conv", conv, LAYERS)
    one_of(op, "last", last, ("double", "single"))
    positive_int(op, "num_classes", num_classes)
    positive_int(op, "se_reduction", se_reduction)
    flag(op, "count_dead", count_dead)
    if not isinstance(kernels, tuple | list):
        fail_type(op, "kernels", "be a sequence of three sets of ints", kernels)
    require(len(kernels) == 3, op, "kernels", "have three sets, one a stage", kernels)
    sets = [odd_kernels(op, sizes) for sizes in kernels]
    plain = sets == [*KERNELS] and last == "double"
    require(plain or conv == "multiception", op, "conv", "be 'multiception' where kernels or last are chosen", conv)
    require(not count_dead or arch == "shakenet26_2x96d", op, "arch", "be 'shakenet26_2x96d' for count_dead", arch)
    defined = (arch, conv) != ("mobilenetv2", "mixconv_dense")
    require(defined, op, "conv", "be another layer for MobileNetV2", conv, hint="'mixconv' is defined there.")
    if last == "single":
        sets[2] = sets[2][:1]

    make = MAKERS[conv]
    if arch == "shakenet26_2x96d":
        return _shakenet(make, sets, num_classes, count_dead)
    if arch == "mobilenetv2":
        return _mobilenetv2(make, sets, num_classes)
    return _resnet(arch, make, sets, num_classes, se_reduction)


register("multiception_net", multiception_net)
for _arch in ARCHS:
    for _conv in LAYERS:
        if (_arch, _conv) != ("mobilenetv2", "mixconv_dense"):
            _name = f"{'stl' if _arch == 'mobilenetv2' else 'cifar'}_{_arch}_{_conv}"
            register(_name, multiception_net, arch=_arch, conv=_conv)

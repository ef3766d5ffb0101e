"""MobileNetV2 (Sandler et al. 2018) and its dilated pyramid variant (Nguyen)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor, nn

from lightkernels._core.spec import require
from lightkernels.models.registry import register
from lightkernels.nn import DepthwiseSeparable2d
from lightkernels.nn._arguments import flag, int_tuple, one_of, positive_int
from lightkernels.nn.separable import Activation, activation

# expansion, width, repeats, stride of the first
Stage = tuple[int, int, int, int]
# (index of the block, its expanded width, its output width, its stride) -> what follows the expansion
Bodies = Callable[[int, int, int, int], nn.Module]
MOBILENETV2: tuple[Stage, ...] = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
# Nguyen's Table 3 read literally: in its rows 8 and 15 every repeat has the row's output width.
TABLE3: tuple[Stage, ...] = (
    *MOBILENETV2[:3],
    (6, 64, 1, 2),
    (6, 96, 6, 1),
    (6, 160, 1, 2),
    (6, 320, 3, 1),
)
# Diao et al. 2021, Table 4: one stride, late.
MOBILENETV2_16: tuple[Stage, ...] = tuple((*stage[:3], 2 if stage[1] == 160 else 1) for stage in MOBILENETV2)
STEM, LAST = 32, 1280


def conv_norm_act(in_channels: int, out_channels: int, kernel: int, stride: int, act: Activation) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        activation("conv_norm_act", "act", act, out_channels),
    )


class InvertedResidual(nn.Module):
    """1x1 expansion (none for factor 1), then `body`; plus the input where that fits and is wanted."""

    expand: nn.Module | None

    def __init__(self, in_channels: int, hidden: int, body: nn.Module, act: Activation, *, residual: bool) -> None:
        super().__init__()
        self.expand = None if hidden == in_channels else conv_norm_act(in_channels, hidden, 1, 1, act)
        self.body = body
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x if self.expand is None else self.expand(x))
        return x + out if self.residual else out


class MobileNetV2(nn.Module):
    """Stem, inverted residuals, 1x1 convolution to 1280 channels, mean over the map, classifier; no dropout."""

    def __init__(
        self, stages: Sequence[Stage], num_classes: int, act: Activation, stem_stride: int, bodies: Bodies
    ) -> None:
        super().__init__()
        self.stem = conv_norm_act(3, STEM, 3, stem_stride, act)
        blocks: list[nn.Module] = []
        in_channels = STEM
        for expansion, out_channels, repeats, first_stride in stages:
            for index in range(repeats):
                stride = first_stride if index == 0 else 1
                hidden = expansion * in_channels
                body = bodies(len(blocks), hidden, out_channels, stride)
                residual = stride == 1 and in_channels == out_channels
                blocks.append(InvertedResidual(in_channels, hidden, body, act, residual=residual))
                in_channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.last = conv_norm_act(in_channels, LAST, 1, 1, act)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(LAST, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.pool(self.last(self.blocks(self.stem(x)))).flatten(1))
        return out


def plain_body(index: int, hidden: int, out_channels: int, stride: int) -> nn.Module:
    return DepthwiseSeparable2d(hidden, out_channels, 3, stride=stride, mid_act="relu6")


def mobilenetv2(num_classes: int = 1000, *, stem_stride: int = 2) -> MobileNetV2:
    """MobileNetV2 of width 1 (Sandler et al. 2018), its depthwise layers run by our operator.

    Shapes: ``[N, 3, H, W]`` to ``[N, num_classes]``. ``stem_stride=1`` is what the Multiception paper does.

    Equivalent to: ``create_model("mobilenetv2", num_classes=1000)``

    >>> from lightkernels.models import count, mobilenetv2
    >>> count(mobilenetv2(), (3, 224, 224))
    Count(params=3504872, ops=300774272)
    """
    positive_int("mobilenetv2", "num_classes", num_classes)
    positive_int("mobilenetv2", "stem_stride", stem_stride)
    return MobileNetV2(MOBILENETV2, num_classes, "relu6", stem_stride, plain_body)


def mobilenetv2_16(num_classes: int = 120) -> MobileNetV2:
    """MobileNetV2 of width 1 for 16x16 images (Diao et al. 2021, Table 4): its only stride is that of the sixth stage.

    Shapes: ``[N, 3, H, W]`` to ``[N, num_classes]``; the published size is 16x16.

    Equivalent to: ``create_model("mobilenetv2_16", num_classes=120)``   (the default arguments)

    >>> import torch
    >>> from lightkernels.models import count, create_model
    >>> with torch.device("meta"):
    ...     network = create_model("mobilenetv2_16", num_classes=120)
    >>> count(network, (3, 16, 16))
    Count(params=2377592, ops=251983872)
    """
    positive_int("mobilenetv2_16", "num_classes", num_classes)
    return MobileNetV2(MOBILENETV2_16, num_classes, "relu6", 1, plain_body)


def dilated_mobilenetv2(
    dilations: Sequence[int] = (1, 2, 3),
    split: bool = False,
    width: Literal["mobilenetv2", "table3"] = "mobilenetv2",
    num_classes: int = 102,
) -> MobileNetV2:
    """MobileNetV2 with a pyramid of dilated 3x3 depthwise convolutions in every block (Nguyen).

    Shapes: ``[N, 3, H, W]`` to ``[N, num_classes]``; the published size is 224x224.
    PReLU with a slope for each channel follows the stem, the expansions, the depthwise layers and the last 1x1 layer;
    nothing follows the projections. BatchNorm follows every convolution.

    The paper prints no counts and can be read in several ways, so none of this can be checked against it:

    Args:
        dilations: the rate of each parallel 3x3 branch.
        split: False: each branch sees all expanded channels (the paper's description, 1.9 times MobileNetV2's size).
            True: each sees its share of them (the only reading under which the net does not grow).
        width: ``"mobilenetv2"``, or ``"table3"`` for the literal repeats of the paper's Table 3.

    Raises TypeError and ValueError for other arguments.

    Equivalent to: ``create_model("dilated_mobilenetv2", num_classes=102)``   (the default arguments)

    >>> from lightkernels.models import count, dilated_mobilenetv2
    >>> count(dilated_mobilenetv2(), (3, 224, 224))
    Count(params=4467750, ops=577286272)
    """
    op = "dilated_mobilenetv2"
    rates = int_tuple(op, "dilations", dilations, "a sequence of ints")
    require(len(rates) > 0, op, "dilations", "name at least one branch", dilations)
    flag(op, "split", split)
    # The narrowest layer that a pyramid sees is the stem's.
    require(not split or len(rates) <= STEM, op, "dilations", f"have at most {STEM} entries for split", rates)
    one_of(op, "width", width, ("mobilenetv2", "table3"))
    positive_int(op, "num_classes", num_classes)

    def pyramid(index: int, hidden: int, out_channels: int, stride: int) -> nn.Module:
        kernels = (3,) * len(rates)
        return DepthwiseSeparable2d(
            hidden, out_channels, kernels, stride=stride, dilations=rates, split=split, mid_act="prelu"
        )

    return MobileNetV2(MOBILENETV2 if width == "mobilenetv2" else TABLE3, num_classes, "prelu", 2, pyramid)


register("mobilenetv2", mobilenetv2)
register("mobilenetv2_16", mobilenetv2_16)
register("dilated_mobilenetv2", dilated_mobilenetv2)
register("dilated_mobilenetv2_split", dilated_mobilenetv2, split=True)

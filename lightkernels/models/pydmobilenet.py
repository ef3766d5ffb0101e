"""PydMobileNet (Hoang and Jo): bottlenecks whose middle sums or concatenates a pyramid of depthwise kernels."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from lightkernels._core.spec import fail_type, require
from lightkernels.models.registry import register
from lightkernels.nn import DepthwiseSeparable2d
from lightkernels.nn._arguments import one_of, positive_int

Mid = Literal["add", "concat", "depthwise", "dense"]
MIDS = ("add", "concat", "depthwise", "dense")
WIDTHS = (32, 64, 128)


class DenseTail(nn.Module):
    """The comparison block's second half: a full 3x3 convolution in the place of the depthwise pyramid."""

    def __init__(self, inner: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.act1 = nn.ReLU()
        self.pointwise = nn.Conv2d(inner, out_channels, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm2(self.pointwise(self.act1(self.norm1(self.conv(x)))))
        return out


class PydBlock(nn.Module):
    """BN, ReLU, 1x1, BN, ReLU, mid (carries the stride), BN, ReLU, 1x1, BN; plus the shortcut of the raw input."""

    shortcut: nn.Module | None

    def __init__(self, in_channels: int, inner: int, out_channels: int, stride: int, mid: Mid) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.reduce = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.act = nn.ReLU()
        self.tail: nn.Module
        if mid == "dense":
            self.tail = DenseTail(inner, out_channels, stride)
        else:
            self.tail = DepthwiseSeparable2d(
                inner,
                out_channels,
                3 if mid == "depthwise" else (3, 5, 7),
                stride=stride,
                combine="add" if mid == "add" else "concat",
                mid_act="relu",
            )
        self.shortcut = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.tail(self.act(self.norm2(self.reduce(self.act(self.norm1(x))))))
        return out + (x if self.shortcut is None else self.shortcut(x))


class PydMobileNet(nn.Module):
    """Input norm (scale and shift frozen), 3x3 stem, three stages of `PydBlock`, mean over the map, classifier."""

    def __init__(self, blocks: int, alpha: float, mid: Mid, num_classes: int, inner: Literal["out", "in"]) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3).requires_grad_(False)
        self.stem = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        stages: list[nn.Module] = []
        in_channels = WIDTHS[0]
        for out_channels in WIDTHS:
            stage: list[nn.Module] = []
            for index in range(blocks):
                stride = 2 if index == 0 and out_channels != WIDTHS[0] else 1
                width = int(alpha * (out_channels if inner == "out" else in_channels))
                stage.append(PydBlock(in_channels, width, out_channels, stride, mid))
                in_channels = out_channels
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.pool(self.stages(self.stem(self.norm(x)))).flatten(1))
        return out


def pydmobilenet(
    depth: int = 29,
    alpha: float = 0.5,
    mid: Mid = "add",
    num_classes: int = 10,
    *,
    inner: Literal["out", "in"] = "out",
) -> PydMobileNet:
    """PydMobileNet for small images (Hoang and Jo), and the two networks its Table 3 compares it with.

    Shapes: ``[N, 3, H, W]`` to ``[N, num_classes]``; the published size is 32x32. Dtype: that of the parameters.

    Args:
        depth: 9 n + 2 layers, n blocks a stage: 29 and 56 are published.
        alpha: the inner width of a block is ``int(alpha * width)``.
        mid: the middle layer: depthwise 3x3, 5x5 and 7x7 summed (``"add"``) or concatenated (``"concat"``), one
            depthwise 3x3 (``"depthwise"``, the paper's "MobileNet") or a full 3x3 (``"dense"``, its "ResNet").
        inner: which width alpha multiplies, the block's output (``"out"``, as released; gives the published parameters)
            or its input (``"in"``, the paper's Table 2; gives the published FLOPs). They differ in the strided blocks.

    Raises TypeError and ValueError for other arguments.

    Equivalent to: ``create_model("pydmobilenet_add_29_050", num_classes=10)``   (the default arguments)

    >>> from lightkernels.models import count, pydmobilenet
    >>> count(pydmobilenet(29, 0.5), (3, 32, 32))
    Count(params=103904, ops=19559680)
    """
    op = "pydmobilenet"
    positive_int(op, "depth", depth)
    require(depth >= 11 and depth % 9 == 2, op, "depth", "be 9 n + 2 (29, 56)", depth)
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        fail_type(op, "alpha", "be a number", alpha)
    least = 1 / WIDTHS[0]
    require(least <= alpha < float("inf"), op, "alpha", f"be finite and at least {least}", alpha)
    one_of(op, "mid", mid, MIDS)
    one_of(op, "inner", inner, ("out", "in"))
    positive_int(op, "num_classes", num_classes)
    return PydMobileNet((depth - 2) // 9, alpha, mid, num_classes, inner)


PUBLISHED_ALPHAS: dict[Mid, dict[int, tuple[float, ...]]] = {
    "dense": {29: (0.5,), 56: (0.5,)},
    "depthwise": {29: (0.5, 1.0, 1.5), 56: (0.5, 1.0, 1.5)},
    "add": {29: (0.25, 0.5, 0.75, 1.0), 56: (0.25, 0.5, 0.75, 1.0)},
    "concat": {29: (0.25, 0.5, 0.75), 56: (0.25, 0.5, 0.75)},
}
register("pydmobilenet", pydmobilenet)
for _mid, _depths in PUBLISHED_ALPHAS.items():
    for _depth, _alphas in _depths.items():
        for _alpha in _alphas:
            _name = f"pydmobilenet_{_mid}_{_depth}_{round(100 * _alpha):03d}"
            register(_name, pydmobilenet, depth=_depth, alpha=_alpha, mid=_mid)

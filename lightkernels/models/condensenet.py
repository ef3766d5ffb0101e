"""CondenseNet (Huang et al. 2018) and CondenseNetV2 (Yang et al. 2021): dense blocks with learned groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from lightkernels._core.spec import fail_type, require
from lightkernels.models.registry import register
from lightkernels.nn import LearnedGroupConv2d, SparseFeatureReactivation, condense
from lightkernels.nn._arguments import int_tuple, one_of, positive_int, share
from lightkernels.nn._mldn_condensed import CondensedMLDNBlock
from lightkernels.nn.condensed import Act, Condensable, like
from lightkernels.nn.squeeze_excite import SqueezeExcite

Dataset = Literal["cifar", "imagenet"]
DATASETS = ("cifar", "imagenet")


class Classifier(nn.Linear):
    """A linear layer that CondenseNet's conventions count as one of version 1 or 2."""

    def __init__(self, in_features: int, out_features: int, version: int) -> None:
        self.version = version
        super().__init__(in_features, out_features)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.version == 1:
            nn.init.zeros_(self.bias)

    def stated_count(self, convention: str, x: Tensor, y: Tensor) -> tuple[int, int]:
        weights, biases = self.weight.numel(), self.bias.numel()
        if self.version == 1 and convention == "converted":
            weights -= self.in_features // 2 * self.out_features
        counted = self.version == 1 and convention != "macs"
        return weights + biases, weights + biases * counted


class DenseLayer(nn.Module):
    """Learned group 1x1, grouped 3x3, [squeeze-excite]; the result is appended to x.

    Version 2 first adds to x what sparse feature reactivation makes of the result.
    """

    excite: nn.Module | None
    reactivate: SparseFeatureReactivation | None

    def __init__(self, channels: int, growth: int, o: Options, block: int) -> None:
        super().__init__()
        act: Act = "hardswish" if o.hswish_from_block is not None and block >= o.hswish_from_block else "relu"
        middle = o.bottleneck * growth
        groups: Any = {"groups": o.groups, "condense_factor": o.condense_factor}
        self.reduce = LearnedGroupConv2d(channels, middle, dropout=o.dropout, activation=act, **groups)
        self.norm = nn.BatchNorm2d(middle)
        self.act = nn.Hardswish() if act == "hardswish" else nn.ReLU()
        self.conv = nn.Conv2d(middle, growth, 3, padding=1, groups=o.groups, bias=False)
        self.excite = self.reactivate = None
        if o.se_from_block is not None and block >= o.se_from_block:
            self.excite = SqueezeExcite(growth, 1)
        if o.version == 2:
            self.reactivate = SparseFeatureReactivation(
                growth, channels, activation=act, zero_init=o.sfr_zero_init, **groups
            )

    def plain(self) -> bool:
        """Whether it is still a layer as it was made, of nothing that the operator of the dense block has not."""
        kinds = zip((self.reduce, self.act, self.conv), (LearnedGroupConv2d, nn.ReLU, nn.Conv2d), strict=True)
        known = self.excite is None and self.reduce.activation == "relu" and all(type(m) is kind for m, kind in kinds)
        again = self.reactivate
        return known and (again is None or (type(again) is SparseFeatureReactivation and again.activation == "relu"))

    def values(self, layers: int) -> dict[str, Any]:
        """Of a block of such layers, as the operator of the dense block has them."""
        return {
            "num_layers": layers,
            "paths": 1,
            "growth": self.conv.out_channels,
            "bottleneck": self.conv.in_channels // self.conv.out_channels,
            "groups": self.conv.groups,
            "version": 1 if self.reactivate is None else 2,
            "pairing": "xor1",
            "kernel_size": 3,
            "index_groups": self.reduce.groups,
            "condense_factor": self.reduce.condense_factor,
        }

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(self.act(self.norm(self.reduce(x))))
        if self.excite is not None:
            h = self.excite(h)
        return torch.cat([x if self.reactivate is None else self.reactivate(h, x), h], 1)


class DenseBlock(nn.Sequential, Condensable):
    """The layers of a block. Condensed, they are one operator, of one path; those with h-swish or squeeze-excite stay
    layers, with condensed children."""

    def condense(self) -> nn.Module:
        layers = cast("list[DenseLayer]", list(self))
        norms = [n for layer in layers for n in (layer.reduce.norm, layer.norm)]
        norms += [layer.reactivate.norm for layer in layers if layer.reactivate is not None]
        alike = len({layer.reactivate is None for layer in layers}) == 1
        known = all(type(n) is nn.BatchNorm2d and n.affine and n.track_running_stats for n in norms)
        if alike and known and len({n.eps for n in norms}) == 1 and all(layer.plain() for layer in layers):
            return like(CondensedMLDNBlock(layers[0].values(len(layers)), layers), self)
        return DenseBlock(*(condense(layer) for layer in layers)).train(self.training)


class CondenseNet(nn.Module):
    """Stem, dense blocks with average pools between them, norm, ReLU, mean over the map, classifier."""

    excite: nn.Module | None
    hidden: nn.Module | None

    def __init__(self, o: Options) -> None:
        super().__init__()
        channels = 2 * o.growth[0]
        self.stem = nn.Conv2d(3, channels, 3, stride=2 if o.dataset == "imagenet" else 1, padding=1, bias=False)
        blocks: list[nn.Module] = []
        for block, (layers, growth) in enumerate(zip(o.stages, o.growth, strict=True)):
            if block:
                blocks.append(nn.AvgPool2d(2))
            made = []
            for _ in range(layers):
                made.append(DenseLayer(channels, growth, o, block))
                channels += growth
            blocks.append(DenseBlock(*made))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.excite = None if o.head_reduction is None else SqueezeExcite(channels, o.head_reduction)
        self.hidden = None
        if o.hidden is not None:
            self.hidden = nn.Sequential(Classifier(channels, o.hidden, o.version), nn.Hardswish())
            channels = o.hidden
        self.classifier = Classifier(channels, o.num_classes, o.version)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.act(self.norm(self.blocks(self.stem(x)))))
        if self.excite is not None:
            x = self.excite(x)
        x = x.flatten(1)
        if self.hidden is not None:
            x = self.hidden(x)
        out: Tensor = self.classifier(x)
        return out

    def condense(self, *, prune_classifier: bool = False) -> nn.Module:
        """A condensed copy for inference, see :func:`lightkernels.nn.condense`; the model itself is left as it is.

        Args:
            prune_classifier: the classifier keeps the half of its inputs with the largest weights, as the published
                conversion of version 1 does. That changes outputs, and nothing is trained afterwards.
        """
        return condense(self, classifier="classifier" if prune_classifier else None)


class Options:
    """The arguments of :func:`condensenet`, checked; every rule of divisibility has its own error."""

    def __init__(
        self,
        stages: Sequence[int],
        growth: Sequence[int],
        groups: int,
        condense_factor: int,
        version: int,
        num_classes: int,
        dataset: Dataset,
        bottleneck: int,
        dropout: float,
        hswish_from_block: int | None,
        se_from_block: int | None,
        head_reduction: int | None,
        hidden: int | None,
        sfr_zero_init: bool,
    ) -> None:
        op = "condensenet"
        self.stages = int_tuple(op, "stages", stages, "a sequence of ints")
        self.growth = int_tuple(op, "growth", growth, "a sequence of ints")
        require(len(self.stages) > 0, op, "stages", "have at least one block", stages)
        same = len(self.growth) == len(self.stages)
        require(same, op, "growth", f"have {len(self.stages)} entries, one a block", growth)
        self.groups = positive_int(op, "groups", groups)
        self.condense_factor = positive_int(op, "condense_factor", condense_factor)
        require(version in (1, 2), op, "version", "be 1 or 2", version)
        self.version = version
        self.num_classes = positive_int(op, "num_classes", num_classes)
        one_of(op, "dataset", dataset, DATASETS)
        self.dataset = dataset
        self.bottleneck = positive_int(op, "bottleneck", bottleneck)
        self.dropout = share(op, "dropout", dropout)
        self.hswish_from_block, self.se_from_block = hswish_from_block, se_from_block
        self.head_reduction, self.hidden, self.sfr_zero_init = head_reduction, hidden, sfr_zero_init
        own = {"hswish_from_block": hswish_from_block, "se_from_block": se_from_block}
        for name, value in (*own.items(), ("head_reduction", head_reduction), ("hidden", hidden)):
            require(version == 2 or value is None, op, name, "be None in version 1", value)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
                fail_type(op, name, "be an int or None", value)
            least = 0 if name in own else 1
            require(value is None or value >= least, op, name, f"be at least {least}", value)
        require(version == 2 or not sfr_zero_init, op, "sfr_zero_init", "be False in version 1", sfr_zero_init)
        self._divisible(op)

    def _divisible(self, op: str) -> None:
        channels = 2 * self.growth[0]
        for block, (layers, growth) in enumerate(zip(self.stages, self.growth, strict=True)):
            rule = f"divide the growth of every block, {growth} in block {block}"
            require(growth % self.groups == 0, op, "groups", rule, self.groups)
            for layer in range(layers):
                rule = f"divide the channels of every layer, {channels} in layer {layer} of block {block}"
                require(channels % self.condense_factor == 0, op, "condense_factor", rule, self.condense_factor)
                channels += growth
        if self.head_reduction is not None:
            fits = channels >= self.head_reduction
            require(fits, op, "head_reduction", f"be at most the last {channels} channels", self.head_reduction)


def condensenet(
    stages: Sequence[int] = (14, 14, 14),
    growth: Sequence[int] = (8, 16, 32),
    *,
    groups: int = 4,
    condense_factor: int = 4,
    version: int = 1,
    num_classes: int = 10,
    dataset: Dataset = "cifar",
    bottleneck: int = 4,
    dropout: float = 0.0,
    hswish_from_block: int | None = None,
    se_from_block: int | None = None,
    head_reduction: int | None = None,
    hidden: int | None = None,
    sfr_zero_init: bool = False,
) -> CondenseNet:
    """CondenseNet or CondenseNetV2.

    Shapes: ``[N, 3, H, W]`` to ``[N, num_classes]``; published at 32x32 (``"cifar"``) and 224x224 (``"imagenet"``,
    a stem of stride 2). Dtype: that of the parameters.

    Args:
        stages: layers of each dense block. growth: channels that a layer of each block adds; the stem has twice the
            first of them.
        groups: of the learned 1x1 convolutions, of the 3x3 convolutions, and of sparse feature reactivation; divides
            every growth.
        condense_factor: a group of a learned convolution keeps one in so many of its inputs (of its outputs in sparse
            feature reactivation); divides the channels of every layer.
        version: 2 has sparse feature reactivation in every layer, and the arguments from ``hswish_from_block`` on.
        bottleneck: a layer has a middle of ``bottleneck * growth`` channels.
        dropout: before the learned convolutions.
        hswish_from_block, se_from_block: the first block, counted from 0, with h-swish in the place of ReLU, and with
            squeeze-excite after its 3x3 convolutions; None: no block.
        head_reduction: squeeze-excite after the last mean, with this reduction. hidden: width of a layer with h-swish
            before the classifier. sfr_zero_init: the scales of reactivation start at zero (the published code sets
            them to one).

    Raises TypeError and ValueError for other arguments, with the rule that they break.

    Train with :func:`lightkernels.nn.set_condensation_progress` in every step; ``model.condense()`` gives the small
    network for inference. Weights are drawn as in the published code.

    Equivalent to: ``create_model("condensenet_86", num_classes=10)``   (the default arguments)

    >>> from lightkernels.models import condensenet, count
    >>> count(condensenet(), (3, 32, 32), "condensenet")
    Count(params=520202, ops=65816394)
    """
    return CondenseNet(
        Options(
            stages,
            growth,
            groups,
            condense_factor,
            version,
            num_classes,
            dataset,
            bottleneck,
            dropout,
            hswish_from_block,
            se_from_block,
            head_reduction,
            hidden,
            sfr_zero_init,
        )
    )


register("condensenet", condensenet)
for _layers in (8, 12, 14, 16, 18, 20):
    register(f"condensenet_{6 * _layers + 2}", condensenet, stages=(_layers,) * 3)
register("condensenet_182", condensenet, stages=(30, 30, 30), growth=(12, 24, 48), dropout=0.1)
_IMAGENET = {"stages": (4, 6, 8, 10, 8), "growth": (8, 16, 32, 64, 128), "dataset": "imagenet"}
for _factor in (4, 8):
    register(f"condensenet_74_imagenet_c{_factor}", condensenet, **_IMAGENET, groups=_factor, condense_factor=_factor)
_V2 = {"version": 2, "dataset": "imagenet", "hswish_from_block": 2, "se_from_block": 3, "head_reduction": 16}
for _name, _stages, _growth, _factor, _hidden in (
    ("a", (1, 1, 4, 6, 8), (8, 8, 16, 32, 64), 8, 828),
    ("b", (2, 4, 6, 8, 6), (6, 12, 24, 48, 96), 6, 1024),
    ("c", (4, 6, 8, 10, 8), (8, 16, 32, 64, 128), 8, 1024),
):
    register(
        f"condensenetv2_{_name}",
        condensenet,
        stages=_stages,
        growth=_growth,
        groups=_factor,
        condense_factor=_factor,
        hidden=_hidden,
        **_V2,
    )

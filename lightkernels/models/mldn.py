"""MLDN (Park and Chang, Sensors 2021): CondenseNet whose dense blocks run in paths that exchange what they make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightkernels._core.pairing import Pairing
from lightkernels._core.spec import fail_type, require
from lightkernels.models.condensenet import DATASETS, Classifier, Dataset
from lightkernels.models.registry import register
from lightkernels.nn import MLDNBlock, condense
from lightkernels.nn._arguments import int_tuple, one_of, positive_int
from lightkernels.nn.mldn import Conv, check

Stem = Literal["conv", "resnet"]


class Preprocessing(nn.Module):
    """The first ``width`` channels through 1x1, 3x3 and 1x1, each with BatchNorm and ReLU, [plus themselves]."""

    def __init__(self, width: int, shortcut: bool) -> None:
        super().__init__()
        self.width, self.shortcut = width, shortcut
        layers: list[nn.Module] = []
        for side in (1, 3, 1):
            layers.append(nn.Conv2d(width, width, side, padding=side // 2, bias=False))
            layers += [nn.BatchNorm2d(width), nn.ReLU()]
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        first, rest = x[:, : self.width], x[:, self.width :]
        y = self.body(first)
        return torch.cat([first + y if self.shortcut else y, rest], 1)


class MLDN(nn.Module):
    """Stem, [preprocessing], dense blocks and average pools between them, norm, ReLU, mean over the map, classifier."""

    preprocess: nn.Module | None

    def __init__(
        self, stem: nn.Conv2d, preprocess: nn.Module | None, blocks: list[MLDNBlock], head: Classifier
    ) -> None:
        super().__init__()
        self.stem, self.preprocess = stem, preprocess
        parts: list[nn.Module] = []
        for block in blocks:
            parts += [nn.AvgPool2d(2), block] if parts else [block]
        self.blocks = nn.Sequential(*parts)
        self.norm = nn.BatchNorm2d(head.in_features)
        self.act = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = head
        plain = [self.stem] if preprocess is None else [self.stem, *preprocess.modules()]
        for module in plain:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.preprocess is not None:
            x = self.preprocess(x)
        x = self.pool(self.act(self.norm(self.blocks(x))))
        out: Tensor = self.classifier(x.flatten(1))
        return out

    def condense(self, *, prune_classifier: bool = False) -> nn.Module:
        """A condensed copy for inference, see :func:`lightkernels.nn.condense`; the model itself is left as it is.

        Args:
            prune_classifier: the classifier keeps the half of its inputs with the largest weights, as the published
                conversion of version 1 does. That changes outputs, and nothing is trained afterwards.
        """
        return condense(self, classifier="classifier" if prune_classifier else None)


def mldn(
    stages: Sequence[int] = (14, 14, 14),
    growth: Sequence[int] = (8, 16, 32),
    paths: Sequence[int] = (2, 2, 2),
    version: int = 1,
    stem: Stem = "conv",
    stem_shortcut: bool = True,
    conv: Conv = "standard",
    k_rsdc: int = 5,
    rsdc_from_block: int = 1,
    rsdc_bias: bool = False,
    groups: int = 4,
    condense_factor: int = 4,
    dropout: float = 0.1,
    num_classes: int = 10,
    dataset: Dataset = "cifar",
    bottleneck: int = 4,
    pairing: Pairing = "xor1",
    recompute: bool | None = None,
    sfr_zero_init: bool = False,
) -> MLDN:
    """MLDN on CondenseNet (``version=1``) or CondenseNetV2 (2).

    Shapes: ``[N, 3, H, W]`` to ``[N, num_classes]``; 32x32 (``"cifar"``) or 224x224 (``"imagenet"``, a stem of
    stride 2). Dtype: that of the parameters.

    Args:
        stages, growth, paths: of each dense block, its layers, the channels that a layer adds, and its paths (1 or
            even); the stem has ``2 * growth[0]`` channels. What a path adds, ``growth / paths``, is divisible by
            ``groups``, and the channels of a path by ``condense_factor`` in every layer.
        stem: ``"resnet"`` preprocesses the first half of the stem's channels (with other than two paths in the first
            block: its first path's) by a bottleneck of three convolutions; ``stem_shortcut`` adds them to the result,
            as the paper's equation does and the authors' code does not.
        conv: ``"rsdc"``: the 3x3 convolutions from block ``rsdc_from_block`` on, counted from 0, have nine cells of a
            window of ``k_rsdc``, and with ``rsdc_bias`` a bias, as the published counts have.
        dropout: before the learned 1x1 convolutions. sfr_zero_init: of version 2, and bottleneck, pairing, recompute:
            see :class:`lightkernels.nn.MLDNBlock`.

    Raises TypeError and ValueError for other arguments, with the rule that they break.

    Train with :func:`lightkernels.nn.set_condensation_progress` in every step; ``model.condense()`` gives the small
    network for inference.

    Equivalent to: ``create_model("mldn_222", num_classes=10)``   (the default arguments)

    >>> from lightkernels.models import count, mldn
    >>> count(mldn(), (3, 32, 32), "condensenet")
    Count(params=280298, ops=34850634)

    Source: Park and Chang, Sensors 2021, 21, 7862, Section 3 and Table 1.
    """
    op = "mldn"
    layers = int_tuple(op, "stages", stages, "a sequence of ints")
    require(len(layers) > 0, op, "stages", "have at least one block", stages)
    rest = {"growth": int_tuple(op, "growth", growth, "a sequence of ints")}
    rest["paths"] = int_tuple(op, "paths", paths, "a sequence of ints")
    for name, given in rest.items():
        require(len(given) == len(layers), op, name, f"have {len(layers)} entries, one a block", given)
    one_of(op, "stem", stem, ("conv", "resnet"))
    one_of(op, "conv", conv, ("standard", "rsdc"))
    one_of(op, "dataset", dataset, DATASETS)
    if not isinstance(stem_shortcut, bool):
        fail_type(op, "stem_shortcut", "be a bool", stem_shortcut)
    positive_int(op, "num_classes", num_classes)
    if not isinstance(rsdc_from_block, int) or isinstance(rsdc_from_block, bool):
        fail_type(op, "rsdc_from_block", "be an int", rsdc_from_block)
    require(rsdc_from_block >= 0, op, "rsdc_from_block", "be at least 0", rsdc_from_block)
    common: dict[str, Any] = {
        "version": version,
        "bottleneck": bottleneck,
        "groups": groups,
        "condense_factor": condense_factor,
        "k_rsdc": k_rsdc,
        "rsdc_bias": rsdc_bias,
        "dropout": dropout,
        "pairing": pairing,
        "recompute": recompute,
        "sfr_zero_init": sfr_zero_init,
    }
    channels = 2 * rest["growth"][0]
    plans = []
    for i, (length, k, p) in enumerate(zip(layers, rest["growth"], rest["paths"], strict=True)):
        own: Conv = conv if i >= rsdc_from_block else "standard"
        sizes: dict[str, Any] = {"in_channels": channels, "growth": k, "num_layers": length, "paths": p}
        check(op, f" of block {i}", **sizes, **common, conv=own)
        plans.append((sizes, own))
        channels += length * k
    blocks = [MLDNBlock(**sizes, **common, conv=own) for sizes, own in plans]
    first = 2 * rest["growth"][0]
    entry = nn.Conv2d(3, first, 3, stride=2 if dataset == "imagenet" else 1, padding=1, bias=False)
    preprocess = Preprocessing(first // rest["paths"][0], stem_shortcut) if stem == "resnet" else None
    return MLDN(entry, preprocess, blocks, Classifier(channels, num_classes, version))


register("mldn", mldn)
for _version, _family in ((1, "mldn"), (2, "mldnv2")):
    for _paths in ((2, 2, 2), (2, 4, 4), (2, 4, 8)):
        _name = "".join(map(str, _paths))
        register(f"{_family}_{_name}", mldn, version=_version, paths=_paths)
        register(f"{_family}_resnet_{_name}", mldn, version=_version, paths=_paths, stem="resnet")
    for _window in (5, 7):
        _options = {"version": _version, "stem": "resnet", "conv": "rsdc", "rsdc_bias": True, "k_rsdc": _window}
        register(f"{_family}_rsdc{_window}_222", mldn, **_options)

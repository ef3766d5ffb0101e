"""The published tables of CondenseNet and CondenseNetV2, and what the MLDN paper prints of them: data only."""

from __future__ import annotations

from typing import Any

_CIFAR = "CondenseNet, CIFAR-10"
_IMAGENET = "CondenseNet, ImageNet"
_V2 = "CondenseNetV2, ImageNet"
_MLDN = "MLDN, Table 2"
_AFTER = "counted after conversion, with half of the classifier"
_STATED = "known non-reproduction: no network of one depth gives this row and its neighbours; ours is the stated one"
_STAGES = {"stages": (14, 14, 14)}

# Paper, paper's name, network, its options, convention, exact parameters and operations, printed ones, note.
# CIFAR: 10 classes of 32x32 images; ImageNet: 1000 of 224x224.
ROWS: tuple[tuple[str, str, str, dict[str, Any], str, int, int, str, str, str], ...] = (
    (_CIFAR, "CondenseNet-50", "condensenet_50", {}, "condensenet", 216506, 28641834, "0.22", "28.6", ""),
    (_CIFAR, "CondenseNet-74", "condensenet_74", {}, "condensenet", 405466, 51897066, "0.41", "51.9", ""),
    (_CIFAR, "CondenseNet-86", "condensenet_86", {}, "condensenet", 520202, 65816394, "0.52", "65.8", ""),
    (_CIFAR, "CondenseNet-98", "condensenet_98", {}, "condensenet", 648442, 81263530, "0.65", "81.3", ""),
    (_CIFAR, "CondenseNet-110", "condensenet_110", {}, "condensenet", 790186, 98238474, "0.79", "98.2", ""),
    (_CIFAR, "CondenseNet-122", "condensenet_122", {}, "condensenet", 945434, 116741226, "0.95", "116.7", ""),
    (_CIFAR, "CondenseNet-182", "condensenet_182", {}, "condensenet", 4221946, 512671594, "4.2", "513", ""),
    (
        *(_IMAGENET, "CondenseNet-74 (C=G=4)", "condensenet_74_imagenet_c4", {}, "converted"),
        *(4773944, 529328264, "4.8", "529", _AFTER),
    ),
    (
        *(_IMAGENET, "CondenseNet-74 (C=G=8)", "condensenet_74_imagenet_c8", {}, "converted"),
        *(2935416, 274233480, "2.9", "274", _AFTER),
    ),
    (_V2, "CondenseNetV2-A", "condensenetv2_a", {}, "condensenet", 2038444, 45874350, "2.0", "46", ""),
    (_V2, "CondenseNetV2-B", "condensenetv2_b", {}, "condensenet", 3592662, 146469057, "3.6", "146", ""),
    (
        *(_V2, "CondenseNetV2-C", "condensenetv2_c", {}, "condensenet"),
        *(6177512, 309740977, "6.1", "309", "truncated in print"),
    ),
    (_MLDN, "CDN", "condensenet", _STAGES, "condensenet", 520202, 65816394, "0.52", "65.8", ""),
    (
        *(_MLDN, "CDNV2", "condensenet", {**_STAGES, "version": 2}, "condensenet"),
        *(599386, 75306816, "0.51", "64.3", _STATED),
    ),
)

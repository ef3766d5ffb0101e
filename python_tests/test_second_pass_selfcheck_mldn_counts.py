"""Exact counts of the second pass of CondenseNet and MLDN, from the shapes of its tensors alone."""

from typing import Any

import pytest

from second_pass.mldn_plan import Net, counts

RES = {"stem": "resnet"}
SPARSE = {"stem": "resnet", "rsdc": 5, "rsdc_bias": True}
TWO = {"groups": 2, "condense": 2}
V2 = {"version": 2}
DOUBLED = {"growth": (16, 32, 64)}
OFFICIAL = {"stem_stride": 2, "classes": 1000}
A = {"stages": (1, 1, 4, 6, 8), "growth": (8, 8, 16, 32, 64), "groups": 8, "condense": 8, "hidden": 828}
B = {"stages": (2, 4, 6, 8, 6), "growth": (6, 12, 24, 48, 96), "groups": 6, "condense": 6, "hidden": 1024}
C = {"stages": (4, 6, 8, 10, 8), "growth": (8, 16, 32, 64, 128), "groups": 8, "condense": 8, "hidden": 1024}
GATES = {"hswish_from": 2, "excite_from": 3, "head_excite": 16}


def _three(layers: int) -> dict[str, Any]:
    return {"stages": (layers,) * 3}


P222, P244, P248 = ({"paths": paths} for paths in ((2, 2, 2), (2, 4, 4), (2, 4, 8)))
# options, parameters and operations as the original counts them, trainable parameters, dense and pruned multiply-adds
CIFAR = [
    ({}, 520202, 65816394, 1451594, 173858624, 62381888),
    (P222, 280298, 34850634, 745994, 87154496, 31416128),
    (P248, 116778, 20342602, 261258, 44605248, 16908096),
    (P222 | RES, 281050, 35596106, 746746, 87875392, 32137024),
    (P248 | RES, 117530, 21088074, 262010, 45326144, 17628992),
    (P222 | RES | {"growth": (16, 16, 16)}, 217194, 61048714, 580074, 145873792, 55556992),
    (P222 | RES | DOUBLED, 1043306, 134565514, 2906090, 350600832, 127647360),
    (P244 | RES | DOUBLED, 579178, 88690314, 1533418, 216645248, 81772160),
    (P244 | RES | DOUBLED | {"classes": 100}, 723268, 88834404, 1677508, 216789248, 81916160),
    (P248 | RES | DOUBLED | {"classes": 100}, 533316, 76677476, 1111236, 180547840, 69759232),
    (P222 | SPARSE, 281722, 35596106, 747418, 87875392, 32137024),
    (P222 | SPARSE | {"rsdc": 7, "classes": 100}, 353812, 35668196, 819508, 87947392, 32209024),
    (P222 | SPARSE | TWO | {"classes": 100}, 593716, 66633956, 904180, 100333696, 63174784),
    (P222 | SPARSE | TWO | _three(12), 406794, 52642538, 635274, 77454048, 49928928),
    (P222 | SPARSE | TWO | _three(10), 305466, 40251018, 464506, 57529984, 38196864),
    (P222 | SPARSE | TWO | _three(6), 143322, 20051402, 201114, 26332608, 19058112),
    (V2, 599386, 75306816, 1763626, 211017536, 71671616),
    (V2 | P222, 320674, 39696192, 902794, 105733952, 36060992),
    (V2 | P248, 130386, 22851392, 310986, 53837632, 19216192),
    (V2 | P248 | RES, 131138, 23596864, 311738, 54558528, 19937088),
    (V2 | P222 | RES | DOUBLED, 1201674, 153546368, 3530154, 424918656, 146226816),
    (V2 | P244 | RES | DOUBLED | {"classes": 100}, 805924, 100475136, 1998724, 261746944, 93155584),
    (V2 | P222 | SPARSE, 322098, 40441664, 904218, 106454848, 36781888),
    (V2 | P222 | SPARSE | TWO, 600810, 76052288, 988890, 118841152, 72392512),
    (V2 | P222 | SPARSE | TWO | _three(8), 244074, 32647712, 371754, 46780960, 31052320),
    (_three(8), 216506, 28641834, 522938, 64934432, 27185696),
    (_three(16), 648442, 81263530, 1863418, 221701024, 76997536),
    (_three(18), 790186, 98238474, 2326378, 275310592, 93054976),
    (_three(30) | {"growth": (12, 24, 48)}, 4221946, 512671594, 13792906, 1615332192, 493929312),
]
IMAGENET = [
    ({**C, "groups": 4, "condense": 4, "hidden": None}, 5805944, 530360264, 11922680, 1267904128, 517672576),
    (V2 | A | GATES, 2038444, 45874350, 3350244, 150269536, 43143776),
    (V2 | B | GATES, 3592662, 146469057, 6311412, 457518256, 140468656),
]


@pytest.mark.parametrize(("options", "expected"), [(row[0], row[1:]) for row in CIFAR])
def test_counts(options: dict[str, Any], expected: tuple[int, ...]) -> None:
    got = counts(Net(**options))
    assert tuple(got[key] for key in ("params", "ops", "train_params", "dense_macs", "macs")) == expected


@pytest.mark.parametrize(("options", "expected"), [(row[0], row[1:]) for row in IMAGENET])
def test_counts_of_large_images(options: dict[str, Any], expected: tuple[int, ...]) -> None:
    got = counts(Net(**options, **OFFICIAL), 224)
    assert tuple(got[key] for key in ("params", "ops", "train_params", "dense_macs", "macs")) == expected


def test_counts_after_conversion() -> None:
    for options, params, ops in (
        ({}, 516202, 65812394),
        (P222, 276298, 34846634),
        (P244 | {"classes": 100}, 196356, 23413924),
        (P222 | SPARSE | TWO | _three(6), 141562, 20049642),
    ):
        got = counts(Net(**options))
        assert (got["converted_params"], got["converted_ops"]) == (params, ops)
    large = counts(Net(**C | {"groups": 4, "condense": 4, "hidden": None}, **OFFICIAL), 224)
    assert (large["converted_params"], large["converted_ops"]) == (4773944, 529328264)
    # Printed for version 2 at its largest: 309M and 6.1M, cut off.
    largest = counts(Net(**V2 | C | GATES, **OFFICIAL), 224)
    assert (round(largest["ops"] / 1e4), round(largest["params"] / 1e3)) == (30974, 6178)

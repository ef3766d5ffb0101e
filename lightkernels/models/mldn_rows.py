"""Tables 2, 3 and 5 of the MLDN paper: data only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_NO_V2 = "known non-reproduction: no network of one depth gives this row and its neighbours; ours is the stated one"
_WINDOW = "known non-reproduction: the paper's own rows for C = G = 2 count nothing for the window, this one does"
_HUNDRED = "the paper's figure is that of 100 classes"
_WIDE: dict[str, Any] = {"growth": (16, 32, 64)}

# Paper's name, network, its options, exact parameters and operations, printed ones, note. 10 classes unless noted.
_TABLE2: tuple[tuple[str, str, dict[str, Any], int, int, str, str, str], ...] = (
    ("MLDN-CDN, P=2-2-2", "mldn_222", {}, 280298, 34850634, "0.28", "34.9", ""),
    ("MLDN-CDN, P=2-4-4", "mldn_244", {}, 164266, 23381834, "0.16", "23.4", ""),
    ("MLDN-CDN, P=2-4-8", "mldn_248", {}, 116778, 20342602, "0.12", "20.3", ""),
    ("MLDN-CDN with ResNet, P=2-2-2", "mldn_resnet_222", {}, 281050, 35596106, "0.28", "35.6", ""),
    ("MLDN-CDN with ResNet, P=2-4-4", "mldn_resnet_244", {}, 165018, 24127306, "0.17", "24.1", ""),
    ("MLDN-CDN with ResNet, P=2-4-8", "mldn_resnet_248", {}, 117530, 21088074, "0.12", "21.1", ""),
    (
        *("MLDN-CDN with ResNet, P=2-2-2, k=16", "mldn_resnet_222", {"growth": (16, 16, 16)}),
        *(217194, 61048714, "0.22", "61.0", ""),
    ),
    (
        *("MLDN-CDN with ResNet, P=2-2-2, k=32", "mldn_resnet_222", {"growth": (32, 32, 32)}),
        *(778698, 231427850, "0.78", "231.4", ""),
    ),
    (
        *("MLDN-CDN with ResNet, P=2-2-2, k=16-32-64", "mldn_resnet_222", _WIDE),
        *(1043306, 134565514, "1.04", "134.6", ""),
    ),
    (
        *("MLDN-CDN with ResNet, P=2-4-4, k=16-32-64", "mldn_resnet_244", _WIDE),
        *(723268, 88834404, "0.72", "88.8", _HUNDRED),
    ),
    ("MLDN-CDN with ResNet, P=2-4-8, k=16-32-64", "mldn_resnet_248", _WIDE, 389226, 76533386, "0.39", "76.5", ""),
    ("MLDN-CDNV2, P=2-2-2", "mldnv2_222", {}, 320674, 39696192, "0.27", "33.4", _NO_V2),
    ("MLDN-CDNV2, P=2-4-8", "mldnv2_248", {}, 130386, 22851392, "0.10", "20.0", _NO_V2),
    ("MLDN-CDNV2 with ResNet, P=2-2-2", "mldnv2_resnet_222", {}, 321426, 40441664, "0.26", "34.1", _NO_V2),
    ("MLDN-CDNV2 with ResNet, P=2-4-8", "mldnv2_resnet_248", {}, 131138, 23596864, "0.11", "20.7", _NO_V2),
)


def _depth(layers: int) -> dict[str, Any]:
    return {"stages": (layers,) * 3, "groups": 2, "condense_factor": 2}


_TABLE3: tuple[tuple[str, str, dict[str, Any], int, int, str, str, str], ...] = (
    ("RSDC k=5, L=14, C=G=4", "mldn_rsdc5_222", {}, 281722, 35596106, "0.28", "36.1", _WINDOW),
    ("RSDC k=7, L=14, C=G=4", "mldn_rsdc7_222", {}, 281722, 35596106, "0.28", "36.4", _WINDOW),
    ("RSDC k=5, L=14, C=G=2", "mldn_rsdc5_222", _depth(14), 521626, 66561866, "0.52", "66.6", ""),
    ("RSDC k=5, L=12, C=G=2", "mldn_rsdc5_222", _depth(12), 406794, 52642538, "0.41", "52.6", ""),
    ("RSDC k=5, L=10, C=G=2", "mldn_rsdc5_222", _depth(10), 305466, 40251018, "0.31", "40.3", ""),
    ("RSDC k=5, L=8, C=G=2", "mldn_rsdc5_222", _depth(8), 217642, 29387306, "0.22", "29.4", ""),
    ("RSDC k=5, L=6, C=G=2", "mldn_rsdc5_222", _depth(6), 143322, 20051402, "0.14", "20.1", ""),
    ("RSDC k=5, V2, L=14, C=G=4", "mldnv2_rsdc5_222", {}, 322098, 40441664, "0.27", "34.6", _NO_V2),
)


def rows() -> Iterator[tuple[str, str, str, int, dict[str, Any], int, int, str, str, str]]:
    """Paper, paper's name, network, classes, options, exact parameters and operations, printed ones, note."""
    for paper, table in (("MLDN, Table 2", _TABLE2), ("MLDN, Table 3", _TABLE3)):
        for name, model, options, params, ops, printed_params, printed_ops, note in table:
            classes = 100 if note == _HUNDRED else 10
            yield paper, name, model, classes, options, params, ops, printed_params, printed_ops, note

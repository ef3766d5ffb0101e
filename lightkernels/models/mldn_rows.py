"""Tables 2 to 5 of the MLDN paper: data only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_Table = tuple[tuple[str, str, dict[str, Any], int, int, str, str, str], ...]

_NO_V2 = "known non-reproduction: no network of one depth gives this row and its neighbours; ours is the stated one"
_WINDOW = "known non-reproduction: the paper's own rows for C = G = 2 count nothing for the window, this one does"
_HUNDRED = "the paper's figure is that of 100 classes"
_UNSTATED = "known non-reproduction: the paper does not state the network; ours is that of the authors' command"
_WIDE: dict[str, Any] = {"growth": (16, 32, 64)}

# Paper's name, network, its options, exact parameters and operations, printed ones, note. 10 classes unless noted.
_TABLE2: _Table = (
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
    ("MLDN-CDNV2, P=2-4-4", "mldnv2_244", {}, 185714, 26392384, "0.15", "22.4", _NO_V2),
    ("MLDN-CDNV2, P=2-4-8", "mldnv2_248", {}, 130386, 22851392, "0.10", "20.0", _NO_V2),
    ("MLDN-CDNV2 with ResNet, P=2-2-2", "mldnv2_resnet_222", {}, 321426, 40441664, "0.26", "34.1", _NO_V2),
    ("MLDN-CDNV2 with ResNet, P=2-4-4", "mldnv2_resnet_244", {}, 186466, 27137856, "0.16", "23.2", _NO_V2),
    ("MLDN-CDNV2 with ResNet, P=2-4-8", "mldnv2_resnet_248", {}, 131138, 23596864, "0.11", "20.7", _NO_V2),
    (
        *("MLDN-CDNV2 with ResNet, P=2-2-2, k=16", "mldnv2_resnet_222", {"growth": (16, 16, 16)}),
        *(248778, 68876160, "0.20", "59.9", _NO_V2),
    ),
    (
        *("MLDN-CDNV2 with ResNet, P=2-2-2, k=32", "mldnv2_resnet_222", {"growth": (32, 32, 32)}),
        *(902346, 262135552, "0.77", "230.0", _NO_V2),
    ),
    (
        *("MLDN-CDNV2 with ResNet, P=2-2-2, k=16-32-64", "mldnv2_resnet_222", _WIDE),
        *(1201674, 153546368, "1.04", "133.1", _NO_V2),
    ),
    (
        *("MLDN-CDNV2 with ResNet, P=2-4-4, k=16-32-64", "mldnv2_resnet_244", _WIDE),
        *(661834, 100331136, "0.70", "86.9", _NO_V2),
    ),
    (
        *("MLDN-CDNV2 with ResNet, P=2-4-8, k=16-32-64", "mldnv2_resnet_248", _WIDE),
        *(440522, 86167168, "0.38", "74.5", _NO_V2),
    ),
)


def _depth(layers: int) -> dict[str, Any]:
    return {"stages": (layers,) * 3, "groups": 2, "condense_factor": 2}


_TABLE3: _Table = (
    ("RSDC k=5, L=14, C=G=4", "mldn_rsdc5_222", {}, 281722, 35596106, "0.28", "36.1", _WINDOW),
    ("RSDC k=7, L=14, C=G=4", "mldn_rsdc7_222", {}, 281722, 35596106, "0.28", "36.4", _WINDOW),
    ("RSDC k=5, L=14, C=G=2", "mldn_rsdc5_222", _depth(14), 521626, 66561866, "0.52", "66.6", ""),
    ("RSDC k=5, L=12, C=G=2", "mldn_rsdc5_222", _depth(12), 406794, 52642538, "0.41", "52.6", ""),
    ("RSDC k=5, L=10, C=G=2", "mldn_rsdc5_222", _depth(10), 305466, 40251018, "0.31", "40.3", ""),
    ("RSDC k=5, L=8, C=G=2", "mldn_rsdc5_222", _depth(8), 217642, 29387306, "0.22", "29.4", ""),
    ("RSDC k=5, L=6, C=G=2", "mldn_rsdc5_222", _depth(6), 143322, 20051402, "0.14", "20.1", ""),
    ("RSDC k=5, V2, L=14, C=G=4", "mldnv2_rsdc5_222", {}, 322098, 40441664, "0.27", "34.6", _NO_V2),
    ("RSDC k=7, V2, L=14, C=G=4", "mldnv2_rsdc7_222", {}, 322098, 40441664, "0.27", "35.2", _NO_V2),
    ("RSDC k=5, V2, L=14, C=G=2", "mldnv2_rsdc5_222", _depth(14), 600810, 76052288, "0.5", "65.1", _NO_V2),
    ("RSDC k=5, V2, L=12, C=G=2", "mldnv2_rsdc5_222", _depth(12), 465258, 59695840, "0.4", "51.7", _NO_V2),
    ("RSDC k=5, V2, L=10, C=G=2", "mldnv2_rsdc5_222", _depth(10), 346346, 45227648, "0.29", "39.9", _NO_V2),
    ("RSDC k=5, V2, L=8, C=G=2", "mldnv2_rsdc5_222", _depth(8), 244074, 32647712, "0.21", "28.2", _NO_V2),
    ("RSDC k=5, V2, L=6, C=G=2", "mldnv2_rsdc5_222", _depth(6), 158442, 21956032, "0.13", "18.6", _NO_V2),
)


_TABLE4: _Table = (
    ("MLDN-RSDC-CDN", "mldn_rsdc5_222", {}, 281722, 35596106, "0.28", "36", "a row of Table 3, rounded"),
)

_LARGE: dict[str, Any] = {
    "stages": (4, 7, 9, 11, 9),
    "growth": (8, 16, 32, 64, 128),
    "paths": (2, 4, 8, 16, 32),
    "dataset": "imagenet",
}
_TABLE5: _Table = (("MLDN-RSDC-CDN", "mldn_rsdc5_222", _LARGE, 2574520, 105347688, "2.3", "177", _UNSTATED),)


def rows() -> Iterator[tuple[str, str, str, int, dict[str, Any], int, int, str, str, str]]:
    """Paper, paper's name, network, classes, options, exact parameters and operations, printed ones, note."""
    for number, table in ((2, _TABLE2), (3, _TABLE3), (4, _TABLE4), (5, _TABLE5)):
        for name, model, options, params, ops, printed_params, printed_ops, note in table:
            classes = 1000 if options is _LARGE else 100 if note == _HUNDRED else 10
            yield f"MLDN, Table {number}", name, model, classes, options, params, ops, printed_params, printed_ops, note

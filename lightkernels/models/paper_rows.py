"""The papers' tables, row by row, beside what our networks count: data only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lightkernels.models.condensenet_rows import ROWS as _CONDENSENET
from lightkernels.models.mldn_rows import rows as _mldn

Size = tuple[int, int, int]


@dataclass(frozen=True)
class PaperRow:
    """One row (for the Multiception paper one cell) of a table.

    The network is ``create_model(model, num_classes=num_classes, **options)``. `params` and `ops` are its exact
    parameters and operations under `convention` at `input_size`, the operations with `ops_options` added to its options
    where the paper's two columns describe different networks. Printed figures are in millions, with the paper's digits.
    A note that begins with "known" explains a printed figure that is not ours.
    """

    paper: str
    row: str
    dataset: str
    model: str
    num_classes: int
    input_size: Size
    params: int
    ops: int
    printed_params: str | None = None
    printed_ops: str | None = None
    convention: str = "macs"
    options: Mapping[str, Any] = field(default_factory=dict)
    ops_options: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def call(self) -> str:
        given = {"num_classes": self.num_classes, **self.options}
        return f"create_model({self.model!r}, {', '.join(f'{key}={value!r}' for key, value in given.items())})"

    @property
    def params_agree(self) -> bool | None:
        """Whether the printed parameters are ours within one unit of their last digit; None where none are printed."""
        return agrees(self.printed_params, self.params)

    @property
    def ops_agree(self) -> bool | None:
        """The same for the operations."""
        return agrees(self.printed_ops, self.ops)


def agrees(printed: str | None, exact: int) -> bool | None:
    """Whether a figure printed in millions is `exact` within one unit of its last digit: rounded or truncated."""
    if printed is None:
        return None
    digits = len(printed.partition(".")[2])
    return abs(round(float(printed) * 1e6) - exact) < 10.0 ** (6 - digits)


def deviation(printed: str | None, exact: int) -> float | None:
    """Ours over the printed figure, minus 1."""
    return None if printed is None else exact / (float(printed) * 1e6) - 1


SMALL: Size = (3, 32, 32)
IMAGE: Size = (3, 224, 224)

# Paper's name, ours, printed parameters and FLOPs, exact parameters (10 classes), exact operations.
# The printed parameters are those of the released networks (inner="out"), the printed FLOPs those of its Table 2.
_PYDMOBILENET = (
    ("ResNet-29-0.5", "pydmobilenet_dense_29_050", "0.221", "29", 221168, 29116672),
    ("MobileNet-29-0.5", "pydmobilenet_depthwise_29_050", "0.079", "12", 79040, 12140800),
    ("MobileNet-29-1", "pydmobilenet_depthwise_29_100", "0.142", "22", 142800, 21950720),
    ("MobileNet-29-1.5", "pydmobilenet_depthwise_29_150", "0.206", "32", 206560, 31760640),
    ("PydMobileNet-Add-29-0.25", "pydmobilenet_add_29_025", "0.060", "10", 59592, 10310912),
    ("PydMobileNet-Add-29-0.5", "pydmobilenet_add_29_050", "0.104", "18", 103904, 18290944),
    ("PydMobileNet-Add-29-0.75", "pydmobilenet_add_29_075", "0.148", "26", 148216, 26270976),
    ("PydMobileNet-Add-29-1", "pydmobilenet_add_29_100", "0.193", "34", 192528, 34251008),
    ("PydMobileNet-Concat-29-0.25", "pydmobilenet_concat_29_025", "0.092", "14", 92520, 14465280),
    ("PydMobileNet-Concat-29-0.5", "pydmobilenet_concat_29_050", "0.170", "27", 169760, 26599680),
    ("PydMobileNet-Concat-29-0.75", "pydmobilenet_concat_29_075", "0.247", "39", 247000, 38734080),
    ("ResNet-56-0.5", "pydmobilenet_dense_56_050", "0.435", "60", 434864, 60303616),
    ("MobileNet-56-0.5", "pydmobilenet_depthwise_56_050", "0.151", "23", 150608, 22868224),
    ("MobileNet-56-1", "pydmobilenet_depthwise_56_100", "0.283", "43", 283248, 43061504),
    ("MobileNet-56-1.5", "pydmobilenet_depthwise_56_150", "0.416", "63", 415888, 63254784),
    ("PydMobileNet-Add-56-0.25", "pydmobilenet_add_56_025", "0.109", "19", 109152, 19158272),
    ("PydMobileNet-Add-56-0.5", "pydmobilenet_add_56_050", "0.200", "36", 200336, 35641600),
    ("PydMobileNet-Add-56-0.75", "pydmobilenet_add_56_075", "0.292", "52", 291520, 52124928),
    ("PydMobileNet-Add-56-1", "pydmobilenet_add_56_100", "0.382", "69", 382704, 68608256),
    ("PydMobileNet-Concat-56-0.25", "pydmobilenet_concat_56_025", "0.175", "28", 175008, 27988224),
    ("PydMobileNet-Concat-56-0.5", "pydmobilenet_concat_56_050", "0.332", "53", 332048, 53301504),
    ("PydMobileNet-Concat-56-0.75", "pydmobilenet_concat_56_075", "0.489", "79", 489088, 78614784),
)
_TRUNCATED = {142800, 206560, 92520, 382704}
_GLUONCV = (
    ("ResNet-20*", "cifar_resnet20_standard", "0.278", "87", 278324, 40818944),
    ("ResNet-56*", "cifar_resnet56_standard", "0.861", "277", 861620, 125753600),
    ("ResNet-110*", "cifar_resnet110_standard", "1.736", "562", 1736564, 253155584),
)

_CODE = "known misprint: the released code counts ours"
_LAST_DIGIT = "known misprint in the last digit: from 10 to 100 classes are 34,650"
_DEAD = "with the unused shortcuts that the released code builds"
# Dataset, classes, network and layer, paper's name, printed parameters, exact parameters, exact multiply-adds, note.
_MULTICEPTION = (
    ("CIFAR-10", 10, "resnet20_standard", "ResNet-20", "0.2724", 272474, 40813184, "truncated in the paper"),
    ("CIFAR-10", 10, "resnet20_multiception", "ResNet-20", "0.1899", 189434, 32408192, _CODE),
    ("CIFAR-10", 10, "resnet50_standard", "ResNet-50", "0.7586", 758554, 111592064, ""),
    ("CIFAR-10", 10, "resnet50_multiception", "ResNet-50", "0.5094", 509434, 85533312, ""),
    ("CIFAR-10", 10, "senet56_standard", "SeNet-56", "0.8679", 867866, 125759936, ""),
    ("CIFAR-10", 10, "senet56_multiception", "SeNet-56", "0.5886", 585530, 96170432, _CODE),
    ("CIFAR-10", 10, "shakenet26_2x96d_standard", "ShakeNet-26-2x96d", "26.78", 26777546, 3776892672, _DEAD),
    ("CIFAR-10", 10, "shakenet26_2x96d_multiception", "ShakeNet-26-2x96d", "17.57", 17565354, 2566246144, _DEAD),
    ("CIFAR-100", 100, "resnet50_standard", "ResNet-50", "0.7644", 764404, 111597824, ""),
    ("CIFAR-100", 100, "resnet50_multiception", "ResNet-50", "0.5153", 515284, 85539072, ""),
    ("CIFAR-100", 100, "shakenet26_2x96d_standard", "ShakeNet-26-2x96d", "26.81", 26812196, 3776927232, _DEAD),
    (
        "CIFAR-100",
        100,
        "shakenet26_2x96d_multiception",
        "ShakeNet-26-2x96d",
        "17.59",
        17600004,
        2566280704,
        _LAST_DIGIT,
    ),
    ("STL-10", 10, "resnet50_standard", "ResNet-50", "0.7586", 758554, 1004323456, ""),
    ("STL-10", 10, "resnet50_multiception", "ResNet-50", "0.5094", 509434, 769794688, ""),
    ("ImageNet32", 1000, "resnet50_standard", "ResNet-50", "0.8229", 822904, 111655424, ""),
    ("ImageNet32", 1000, "resnet50_multiception", "ResNet-50", "0.5738", 573784, 85596672, ""),
)

_SHAPES = "the paper prints shapes, no counts"
_LITERAL = "reading A: every branch sees all channels; the paper prints no counts"
_SPLIT = "reading B: branches share the channels; the paper prints no counts"
# Table and its widths, dataset, classes, network, exact parameters, exact multiply-adds, note.
_NGUYEN = (
    ("Table 2", "ImageNet", 1000, "mobilenetv2", 3504872, 300774272, _SHAPES),
    ("Table 2", "Caltech-101", 102, "dilated_mobilenetv2", 4467750, 577286272, _LITERAL),
    ("Table 2", "Caltech-256", 257, "dilated_mobilenetv2", 4666305, 577484672, _LITERAL),
    ("Table 2", "Caltech-101", 102, "dilated_mobilenetv2_split", 2370086, 299624832, _SPLIT),
    ("Table 2", "Caltech-256", 257, "dilated_mobilenetv2_split", 2568641, 299823232, _SPLIT),
    ("Table 3", "Caltech-101", 102, "dilated_mobilenetv2", 8620966, 835761664, _LITERAL),
    ("Table 3", "Caltech-101", 102, "dilated_mobilenetv2_split", 4435878, 427931136, _SPLIT),
)


def _rows() -> Iterator[PaperRow]:
    for name, model, params, ops, exact, exact_ops in _PYDMOBILENET:
        yield PaperRow(
            *("PydMobileNet, Table 3", name, "CIFAR-10", model, 10, SMALL, exact, exact_ops, params, ops),
            convention="pydmobilenet",
            ops_options={"inner": "in"},
            note="parameters truncated in the paper" if exact in _TRUNCATED else "",
        )
    wrong = "known misprint: parameters are for 100 classes, truncated; FLOPs belong to no such network"
    for name, model, params, ops, exact, exact_ops in _GLUONCV:
        yield PaperRow(
            *("PydMobileNet, Table 3", name, "CIFAR-10", model, 100, SMALL, exact, exact_ops, params, ops), note=wrong
        )
    for dataset, classes, model, name, params, exact, exact_ops, note in _MULTICEPTION:
        row, size = f"{name}, {model.rpartition('_')[2]}", (3, 96, 96) if dataset == "STL-10" else SMALL
        yield PaperRow(
            *("Multiception, Table V", row, dataset, f"cifar_{model}", classes, size, exact, exact_ops, params),
            options={"count_dead": True} if model.startswith("shakenet") else {},
            note=note,
        )
    for table, dataset, classes, model, exact, exact_ops, note in _NGUYEN:
        row = "MobileNetV2" if model == "mobilenetv2" else f"dilated MobileNetV2, widths of {table}"
        yield PaperRow(
            *(f"Nguyen, {table}", row, dataset, model, classes, IMAGE, exact, exact_ops),
            options={"width": "table3"} if table == "Table 3" else {},
            note=note,
        )
    for paper, row, model, given, convention, exact, exact_ops, params, ops, note in _CONDENSENET:
        large = paper.endswith("ImageNet")
        dataset, classes, size = ("ImageNet", 1000, IMAGE) if large else ("CIFAR-10", 10, SMALL)
        yield PaperRow(
            *(paper, row, dataset, model, classes, size, exact, exact_ops, params, ops, convention, given), note=note
        )
    for paper, row, model, classes, given, exact, exact_ops, params, ops, note in _mldn():
        dataset, size = ("ImageNet", IMAGE) if classes == 1000 else (f"CIFAR-{classes}", SMALL)
        yield PaperRow(
            *(paper, row, dataset, model, classes, size, exact, exact_ops, params, ops, "condensenet", given), note=note
        )


PAPER_ROWS: tuple[PaperRow, ...] = tuple(_rows())

"""The table of rsdc2d: nine taps of a larger window, against that window and against a 3x3 convolution."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import lightkernels
from cpu.common import Problems, Row, Settings, Target, laid_out
from cpu.speed import speedup
from lightkernels._core import measure
from lightkernels.ops.multi_dwconv2d import baselines as depthwise
from lightkernels.ops.rsdc2d import baselines, cases


@dataclass(frozen=True)
class Sparse:
    """A call of rsdc2d, stride 1."""

    shape: str
    x: Tensor
    weights: list[Tensor]
    g: Tensor
    taps: Tensor
    kernel_size: int
    groups: int

    def truth(self, kind: str) -> list[Tensor]:
        return baselines.truth(self.x, self.weights, self.g, self.taps, self.kernel_size, kind, groups=self.groups)

    def backend(self, entry: measure.Entry) -> str:
        window = {"kernel_size": self.kernel_size, "groups": self.groups}
        x = laid_out(self.x, entry.layout)
        return str(lightkernels.explain("rsdc2d", x, self.weights[0], self.taps, **window).chosen)

    def ours(self) -> list[measure.Entry]:
        return baselines.ours(self.taps, self.kernel_size, groups=self.groups)

    def others(self, compile: bool) -> list[measure.Entry]:
        layouts = baselines.LAYOUTS if compile else ()
        return baselines.entries(
            self.taps,
            self.kernel_size,
            groups=self.groups,
            dtype=self.x.dtype,
            compile=layouts,
            sixteen="both",
        )

    def also(self) -> list[measure.Entry]:
        if self.groups < self.x.shape[1]:
            return baselines.three_by_three(self.groups)
        own = [e.forward for e in depthwise.ours()]
        near = [
            measure.Entry("nine regular taps", layout, forward, square)
            for layout, forward in zip(baselines.LAYOUTS, own, strict=True)
        ]
        return near + [
            measure.Entry("nine taps of dilation 2", layout, dilated, square) for layout in baselines.LAYOUTS
        ]


def dilated(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """What covers the same window with regular taps; shown beside, no target."""
    return lightkernels.multi_dwconv2d(x, list(weights), dilations=2)


def square(weights: list[Tensor]) -> list[Tensor]:
    return [weights[0].unflatten(2, (3, 3)).contiguous()]


def problems(group: str, dtype: torch.dtype = torch.float32) -> Problems:
    """The bench cases named ``bench_<group>_<shape>`` in the operator's table."""

    def found(settings: Settings) -> Iterator[Sparse]:
        for case in cases.CASES:
            shape = case.name.removeprefix(f"bench_{group}_")
            if "bench" not in case.tags or shape == case.name:
                continue
            if settings.shapes is None or shape in settings.shapes:
                x, weight, taps, _ = (sample := case.build(dtype=dtype)).args
                torch.manual_seed(1)
                g = torch.randn(x.shape[0], weight.shape[0], *x.shape[2:]).to(dtype)
                kw = sample.kwargs
                yield Sparse(shape, x, [weight], g, taps, kw["kernel_size"], kw.get("groups", 1))

    return found


def masked(label: str) -> bool:
    return "masked" in label


def three(label: str) -> bool:
    return label.startswith("3x3")


def tricks(label: str) -> bool:
    return not (masked(label) or three(label))


def regular(label: str) -> bool:
    return label.startswith("nine regular taps")


def upcast(label: str) -> bool:
    return "upcast" in label


THREE = "of a 3x3's time"
DENSE = {"masked": masked, "tricks": tricks}
MLDN = (Target("masked", "over masked 5x5", 8, 4), Target("three", "over a grouped 3x3", 4, 2))
NEVER = (Target("masked", "over masked 5x5", 1.0, 1.0),)
REGULAR = (Target("regular", "of the time of multi_dwconv2d's 3x3", 1.0, 1.0, less=True),)
SIXTEEN = (Target("upcast", "over upcast, convolve, downcast", 2.0, 1.3),)
BF16, FP16 = torch.bfloat16, torch.float16


def dense(kind: str, time: tuple[float, float]) -> tuple[Row, Row]:
    """Shared taps: 5x5 against everything, 7x7 against its masked window."""
    return (
        Row(
            f"rsdc5_{kind}",
            f"9 of 5x5 {kind}, shared taps",
            (
                Target("masked", "over masked 5x5", 2.5, 2.1),
                Target("three", THREE, *time, less=True),
                Target("tricks", "over shifts, gather, unfold", 1.5, 1.15),
            ),
            speedup(problems("layer_5"), kind, DENSE, compile=kind == "forward", price={"three": three}),
        ),
        Row(
            f"rsdc7_{kind}",
            f"9 of 7x7 {kind}, shared taps",
            (Target("masked", "over masked 7x7", 4.8, 4.0), Target("three", THREE, *time, less=True)),
            speedup(problems("layer_7"), kind, {"masked": masked}, price={"three": three}),
        ),
    )


ROWS = (
    *dense("forward", (1.0, 1.15)),
    *dense("step", (0.9, 1.1)),
    *(
        row
        for kind in ("forward", "step")
        for row in (
            Row(
                f"rsdc_mldn_{kind}",
                f"MLDN layers {kind}, groups 8, taps a filter",
                MLDN,
                speedup(problems("mldn"), kind, {"masked": masked, "three": three}, compile=kind == "forward"),
            ),
            Row(
                f"rsdc_filter_{kind}",
                f"9 of 5x5 {kind}, taps a filter",
                NEVER,
                speedup(problems("filter_5"), kind, {"masked": masked}),
            ),
            Row(
                f"rsdc_depthwise_{kind}",
                f"depthwise 9 of 5x5 {kind}",
                REGULAR,
                speedup(problems("depthwise"), kind, price={"regular": regular}),
            ),
            Row(
                f"rsdc_bf16_{kind}",
                f"bf16 9 of 5x5 {kind}",
                SIXTEEN,
                speedup(problems("layer_5", BF16), kind, {"upcast": upcast}),
            ),
            Row(
                f"rsdc_fp16_{kind}",
                f"fp16 9 of 5x5 {kind}",
                SIXTEEN,
                speedup(problems("layer_5", FP16), kind, {"upcast": upcast}),
            ),
        )
    ),
)

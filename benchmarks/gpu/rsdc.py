"""rsdc2d on a GPU: its groups of calls and what is expected of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gpu.plan import Expected, Group

TAPS = 9
# name: N, C, H, W, filters
SHAPES = {
    "R1": (128, 16, 32, 32, 16),
    "R2": (128, 64, 16, 16, 64),
    "R3": (128, 176, 16, 16, 176),
    "R4": (256, 64, 56, 56, 64),
    "R5": (256, 128, 28, 28, 128),
    "R6": (256, 512, 7, 7, 512),
    "L1": (128, 32, 32, 32, 8),
    "L2": (128, 64, 16, 16, 16),
}
# name: kernel size, groups; a set of taps a group
VARIANTS = {"rsdc5": (5, 1), "rsdc7": (7, 1), "rsdc5-groups4": (5, 4), "rsdc5-groups8": (5, 8)}


@dataclass(frozen=True)
class RsdcGroup(Group):
    """One call of rsdc2d, stride 1."""

    @property
    def sizes(self) -> tuple[int, ...]:
        return (*SHAPES[self.shape][:4], 1)

    @property
    def filters(self) -> int:
        return SHAPES[self.shape][4]

    @property
    def window(self) -> tuple[int, int]:
        return VARIANTS[self.variant]

    def elements(self) -> tuple[int, int]:
        n, c, h, w, _ = self.sizes
        return n * c * h * w, n * self.filters * h * w

    def weights(self) -> int:
        return self.filters * self.sizes[1] // self.window[1] * TAPS

    def flops(self) -> int:
        n, _, h, w, _ = self.sizes
        one = 2 * n * h * w * self.weights()
        return 3 * one if self.kind == "step" else one


def groups() -> Iterator[RsdcGroup]:
    """The most telling first."""
    for shapes, dtypes, variants, kinds in (
        ("R4 R5 R3 R6", "bf16", "rsdc5", "forward step"),
        ("R1 R2", "bf16", "rsdc5", "forward step"),
        ("L1 L2", "bf16", "rsdc5-groups8", "forward step"),
        ("R4 R5", "bf16", "rsdc7 rsdc5-groups4", "forward step"),
        ("R4 R5", "fp32", "rsdc5", "forward step"),
        ("R4 R5 R6", "bf16", "rsdc5", "grad_x grad_w"),
    ):
        for shape in shapes.split():
            for dtype in dtypes.split():
                for variant in variants.split():
                    for kind in kinds.split():
                        yield RsdcGroup(shape, dtype, variant, kind)


def expected(group: RsdcGroup) -> Expected:
    """Of the best that computes the same; and of a 3x3 convolution's time."""
    (k, count), c = group.window, group.sizes[1]
    if group.shape.startswith("L"):
        return Expected(None, None, 4, square=None)
    speedup = 1.7 if c >= 512 else 2.5 if k == 5 else 4.0
    if c <= 32:
        return Expected(0.45, 0.65, 1.1)
    square = 1.15 if group.dtype == "fp32" else 0.8 if count > 1 else 1.0 if c == 64 else 1.1
    return Expected(None, None, speedup, 1.2 if group.kind in ("grad_w", "step") else square)

"""mldn_block and condensed_conv2d on a GPU: their groups of calls, what is expected of them, and how long we think
they take; the forecasts stand here before the first run, and beside what was measured after it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gpu.plan import DTYPES, Expected, Group

PATHS, LAYERS, GROWTH, BOTTLENECK = 2, 14, 24, 4
# name: N, C, H, W; 14 layers of two paths of twelve channels each
BLOCKS = {
    "B1": (128, 16, 32, 32),
    "B2": (128, 176, 16, 16),
    "B3": (128, 256, 8, 8),
    "B4": (64, 64, 56, 56),
    "B5": (64, 200, 28, 28),
    "B6": (64, 268, 14, 14),
}
# name: batch statistics, groups of a path's 3x3; evaluation has a forward alone
BLOCK_VARIANTS = {"mldn-eval": (False, 4), "mldn-train": (True, 4), "mldn-train-dense": (True, 1)}
# name: N, C, H, W, filters; four groups, a quarter of the channels each
CONDENSED = {
    "Q1": (256, 64, 32, 32, 32),
    "Q2": (256, 240, 16, 16, 64),
    "Q3": (256, 576, 8, 8, 128),
    "Q4": (64, 480, 28, 28, 128),
}
CONDENSED_VARIANTS = ("condensed",)
PICKING = 4  # groups, and of how many channels one is picked
# For the forecasts, of an H200: bytes and multiply-adds a second of such kernels, and seconds between graph nodes.
BYTES, FLOPS, NODE = 0.7 * 4.3e12, 150e12, 2e-6


def _wide(channels: int) -> int:
    """As tensor cores compute them."""
    return max(16, 1 << (channels - 1).bit_length())


@dataclass(frozen=True)
class BlockGroup(Group):
    """One call of mldn_block. A step is a training forward and its backward."""

    @property
    def sizes(self) -> tuple[int, ...]:
        return (*BLOCKS[self.shape], 1)

    @property
    def layers(self) -> int:
        return LAYERS

    @property
    def training(self) -> bool:
        return BLOCK_VARIANTS[self.variant][0]

    @property
    def groups(self) -> int:
        return BLOCK_VARIANTS[self.variant][1]

    @property
    def growth(self) -> int:
        return GROWTH

    @property
    def tolerance(self) -> float:
        """Norms of 14 layers, one after another, amplify what each rounds; parity is judged in the tests."""
        return {"fp64": 1e-9, "fp32": 0.02}.get(self.dtype, 0.25 if self.kind == "step" else 0.06)

    @property
    def widths(self) -> list[int]:
        """Channels of a path before each layer."""
        return [self.sizes[1] // PATHS + i * self.growth // PATHS for i in range(self.layers)]

    @property
    def pixels(self) -> int:
        n, _, h, w, _ = self.sizes
        return n * h * w

    def weights(self) -> int:
        kappa = self.growth // PATHS
        mid = BOTTLENECK * kappa
        return PATHS * (mid * sum(self.widths) + self.layers * kappa * (mid // self.groups) * 9)

    def flops(self) -> int:
        one = 2 * self.pixels * self.weights()
        return 3 * one if self.kind == "step" else one

    def bytes(self) -> int:
        """Least traffic: (C + 9 k) S a layer in a training forward, (C + k) S in evaluation, (4 C + 29 k) S a step."""
        prefix, rest = (4, 29) if self.kind == "step" else (1, 9) if self.training else (1, 1)
        channels = sum(prefix * PATHS * c + rest * self.growth for c in self.widths)
        return DTYPES[self.dtype].itemsize * self.pixels * channels

    def forecast(self) -> float:
        """Seconds, from what the Triton kernels move (taps are read again from the L2 cache) and multiply."""
        kappa, size, acc = self.growth // PATHS, DTYPES[self.dtype].itemsize, 4
        mid = BOTTLENECK * kappa
        moved = sum(size * (c + 2 * mid + kappa) for c in self.widths)
        products = sum(_wide(mid) * c + 9 * mid * _wide(kappa) for c in self.widths)
        nodes = self.layers * (4 if self.training else 2)
        if self.kind == "step":
            for c in self.widths:
                again = 2 * mid * -(-c // 64)  # the gradient and the result of the 1x1, for each block of its inputs
                settle, spatial = kappa * (acc + 2 * size), size * (2 * kappa + 3 * mid)
                moved += settle + spatial + size * 2 * (again + c) + 2 * acc * c
            products *= 3
            nodes += 9 * self.layers
        moved, products = (2 * PATHS * self.pixels * total for total in (moved / 2, products))
        return max(moved / BYTES, products / FLOPS) + nodes * NODE


@dataclass(frozen=True)
class CondensedGroup(Group):
    """One call of condensed_conv2d."""

    @property
    def sizes(self) -> tuple[int, ...]:
        return (*CONDENSED[self.shape][:4], 1)

    @property
    def filters(self) -> int:
        return CONDENSED[self.shape][4]

    @property
    def tolerance(self) -> float | None:
        return None

    def elements(self) -> tuple[int, int]:
        n, c, h, w, _ = self.sizes
        return n * c * h * w, n * self.filters * h * w

    def weights(self) -> int:
        return self.filters * self.sizes[1] // PICKING

    def flops(self) -> int:
        n, _, h, w, _ = self.sizes
        one = 2 * n * h * w * self.weights()
        return 3 * one if self.kind == "step" else one

    def forecast(self) -> float:
        """Seconds: what is picked is read once; a step writes and reads its gradient in float32, and reads x twice."""
        n, c, h, w, _ = self.sizes
        size = DTYPES[self.dtype].itemsize
        forward = size * (c + self.filters)
        moved = forward if self.kind == "forward" else forward + size * (3 * c + 2 * self.filters) + 8 * c
        return n * h * w * moved / BYTES + (1 if self.kind == "forward" else 10) * NODE


def groups() -> Iterator[Group]:
    """The most telling first."""
    for shapes, dtype, variant, kinds in (
        ("B1 B2 B3", "bf16", "mldn-eval", "forward"),
        ("B1 B2 B3", "bf16", "mldn-train", "step"),
        ("Q1 Q2 Q3 Q4", "bf16", "condensed", "forward"),
        ("B4 B5 B6", "bf16", "mldn-eval", "forward"),
        ("B4 B5 B6", "bf16", "mldn-train", "step"),
        ("B1 B2", "bf16", "mldn-train-dense", "step"),
        ("B1 B4", "bf16", "mldn-train", "forward"),
        ("B1 B2", "fp32", "mldn-train", "step"),
        ("Q2 Q3", "bf16", "condensed", "step"),
        ("Q2", "fp32", "condensed", "forward"),
    ):
        form = CondensedGroup if variant in CONDENSED_VARIANTS else BlockGroup
        for shape in shapes.split():
            for kind in kinds.split():
                yield form(shape, dtype, variant, kind)


def expected(group: Group) -> Expected:
    """Of the best of PyTorch, in CUDA graphs."""
    if isinstance(group, CondensedGroup):
        return Expected(0.5, 0.7, 2.5) if group.kind == "forward" else Expected(None, None, 1.5)
    assert isinstance(group, BlockGroup)
    return Expected(None, None, 2.2 if group.kind == "step" else 2.5 if group.training else 3.5)

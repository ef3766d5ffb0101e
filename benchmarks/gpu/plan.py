"""What is measured on a GPU, in which order, and what is expected of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

KINDS = ("forward", "grad_x", "grad_w", "step")
VARIANTS = {
    "concat": ((3, 5, 7), "concat"),
    "add": ((3, 5, 7), "add"),
    "k3": ((3,), "concat"),
    "k5": ((5,), "concat"),
    "k7": ((7,), "concat"),
}
# name: N, C, H, W, stride
SHAPES = {
    "S1": (128, 64, 32, 32, 1),
    "S2": (128, 256, 8, 8, 1),
    "S3": (64, 96, 112, 112, 2),
    "S4": (128, 144, 56, 56, 1),
    "S5": (256, 384, 14, 14, 1),
    "S6": (256, 960, 7, 7, 1),
}
OURS = {"triton": "lightkernels", "cuda": "lightkernels cuda"}  # backend: name in the records
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16, "fp64": torch.float64}


@dataclass(frozen=True)
class Group:
    """One call of the operator; all its candidates are timed in turn."""

    shape: str
    dtype: str
    variant: str
    kind: str

    @property
    def key(self) -> str:
        return f"{self.shape} {self.dtype} {self.variant} {self.kind}"

    @property
    def sizes(self) -> tuple[int, ...]:
        return SHAPES[self.shape]

    @property
    def kernels(self) -> tuple[int, ...]:
        return VARIANTS[self.variant][0]

    @property
    def combine(self) -> str:
        return VARIANTS[self.variant][1]

    def elements(self) -> tuple[int, int]:
        """Of the input and of the output."""
        n, c, h, w, s = self.sizes
        branches = len(self.kernels) if self.combine == "concat" else 1
        return n * c * h * w, n * c * branches * -(-h // s) * -(-w // s)

    def weights(self) -> int:
        return self.sizes[1] * sum(k * k for k in self.kernels)

    def bytes(self) -> int:
        """Least traffic: every tensor of the pass read or written once; a step's two gradients share one reading."""
        read, written = self.elements()
        weights = self.weights()
        size = DTYPES[self.dtype].itemsize
        one = size * (read + written + weights)
        return one + size * (2 * read + written + 2 * weights) if self.kind == "step" else one

    def flops(self) -> int:
        n, c, h, w, s = self.sizes
        one = 2 * n * c * -(-h // s) * -(-w // s) * sum(k * k for k in self.kernels)
        return 3 * one if self.kind == "step" else one


def groups() -> Iterator[Group]:
    """Everything, the most telling first, so that a run cut short has measured what matters."""
    seen = set()

    def tier(shapes: str, dtypes: str, pairs: str) -> Iterator[Group]:
        for shape in shapes.split():
            for dtype in dtypes.split():
                for pair in pairs.split():
                    group = Group(shape, dtype, *pair.split(":"))
                    if group not in seen:
                        seen.add(group)
                        yield group

    head = "concat:forward concat:step add:forward k7:forward k7:grad_w"
    rest = "concat:grad_x concat:grad_w add:step k3:forward add:grad_w k5:forward k3:grad_w"
    every = " ".join(f"{v}:{k}" for v in VARIANTS for k in KINDS)
    yield from tier("S1 S4", "bf16 fp32", head)
    yield from tier("S5 S6 S2 S3", "bf16 fp32", head)
    yield from tier("S1 S4", "bf16 fp32", rest)
    yield from tier("S1 S4", "fp16 fp64", head)
    yield from tier("S5 S6 S2 S3", "bf16 fp32", rest)
    yield from tier("S1 S4 S5 S6 S2 S3", "bf16 fp32 fp16 fp64", every)


@dataclass(frozen=True)
class Expected:
    """Fractions of the copy ceiling, by useful bytes, and times over the best baseline; None where none was set.

    ``square``: at most so many times the time of a 3x3 convolution of the same channels.
    """

    ship: float | None = None
    goal: float | None = None
    speedup: float | None = None
    square: float | None = None


SMALL_BYTES = 20_000_000
SMALL_SECONDS = 2.5e-6  # allowed on top for tensors up to SMALL_BYTES


def expected(group: Group, layout: str) -> Expected:
    half = group.dtype in ("bf16", "fp16")
    forward = _forward(group, layout, half)
    if group.kind == "forward":
        return forward
    concat = group.variant == "concat"
    if group.kind == "grad_x":
        ship = None if forward.ship is None else round(0.9 * forward.ship, 3)
        return Expected(ship, forward.goal, 3 if concat else None)
    if group.kind == "step":
        return Expected(None, None, 4)
    if half:
        return Expected(0.40, 0.65, 5) if layout == "nchw" and group.variant == "k7" else Expected(None, None, 3)
    return Expected(0.45, 0.70, 5)


def _forward(group: Group, layout: str, half: bool) -> Expected:
    concat = group.variant == "concat"
    if not half:
        if concat:
            return Expected(0.70, 0.85, 4)
        return Expected(0.75, 0.88, 1.3) if group.variant == "k3" else Expected(0.60, 0.78, 2)
    width = group.sizes[3]
    if width in (7, 14):
        return Expected(0.30, 0.50, 2.5) if width == 7 else Expected(0.40, 0.60, 2.5)
    if layout == "nchw":
        return Expected(0.60, 0.82, 5) if concat else Expected(0.60, 0.80, 3)
    if concat:
        return Expected(0.50, 0.70, 3.5)
    return {"k3": Expected(0.60, 0.75, 1.5), "k5": Expected(0.45, 0.60, 2)}.get(group.variant, Expected(0.38, 0.50, 2))


def shrunk(group: Group) -> tuple[int, ...]:
    """Sizes for a rehearsal."""
    _, _, h, w, s = group.sizes
    return (2, 3, min(h, 9), min(w, 9), s)

"""Which Triton kernel a call of `rsdc2d` takes, and its tile."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch

from lightkernels._core import tuning
from lightkernels._core.triton_host import blocks, dot_mode, pow2

if TYPE_CHECKING:
    from lightkernels.ops.rsdc2d.op import Spec

TINY = 64  # products of one tap of a group, below which a matrix product would be mostly padding
NARROW = 16  # channels of a group, below which one step takes several taps
PROGRAMS = 512  # about, of a weight gradient; a constant, so that its sums have one order everywhere
FILL = 132  # programs below which tiles are halved


class ConvTile(NamedTuple):
    """Pixels, columns and channels of a step; warps; steps in flight."""

    bm: int
    bn: int
    bk: int
    warps: int
    stages: int


class GradTile(NamedTuple):
    """Pixels of a step, filters, channels and taps of a program; warps; steps in flight."""

    bm: int
    bo: int
    bc: int
    taps: int
    warps: int
    stages: int


class DirectTile(NamedTuple):
    """Rows of pixels that share a lane, pixels of a row, channels; taps of a weight gradient's program; warps."""

    rows: int
    pixels: int
    bn: int
    taps: int
    warps: int


Tile = TypeVar("Tile", ConvTile, GradTile, DirectTile)


def tiny(spec: Spec) -> bool:
    return spec.groups > 1 and spec.c // spec.groups * (spec.c_out // spec.groups) < TINY


def direct(spec: Spec) -> bool:
    """Whether the element-wise kernels run the call: tiny groups, or a sum that may hold no zero of its own."""
    return spec.exact_nonfinite or tiny(spec)


def sides(spec: Spec, back: bool) -> tuple[int, int]:
    """Channels of one group that the product sums over, and that it computes."""
    part, each = spec.c // spec.groups, spec.c_out // spec.groups
    return (each, part) if back else (part, each)


def phases(spec: Spec) -> int:
    return spec.stride[0] * spec.stride[1]


def pixels(spec: Spec, back: bool) -> int:
    """Pixels of the result; of the largest phase of an input gradient."""
    if not back:
        return spec.n * spec.ho * spec.wo
    return spec.n * blocks((spec.h, spec.stride[0]), (spec.w, spec.stride[1]))


def generation(spec: Spec) -> int:
    """Of the device's architecture, or the one that tiles are made for where there is none."""
    return torch.cuda.get_device_capability()[0] if spec.device == "cuda" and torch.cuda.is_available() else 9


def fitted(size: int, choices: tuple[tuple[int, float], ...]) -> int:
    """The block that computes least for ``size``, a block's own price included."""
    return min(choices, key=lambda choice: blocks((size, choice[0])) * choice[0] * choice[1])[0]


def conv_tile(spec: Spec, kind: str) -> ConvTile:
    tile = _tile(spec, kind, ConvTile, _conv_tile)
    if spec.dtype is torch.float32 and dot_mode(spec.dtype) == "ieee":  # without tensor cores operands lie in registers
        return tile._replace(bm=min(tile.bm, 64), stages=3)
    return tile


def grad_tile(spec: Spec) -> GradTile:
    return _tile(spec, "bwd_w", GradTile, _grad_tile)


def direct_tile(spec: Spec, kind: str) -> DirectTile:
    return _tile(spec, kind, DirectTile, _direct_tile)


def _tile(spec: Spec, kind: str, form: type[Tile], heuristic: Callable[[Spec, str], Tile]) -> Tile:
    kernel = "direct" if direct(spec) else "dot"
    return tuning.tile("rsdc2d", spec, kind, form, lambda: heuristic(spec, kind), kernel=kernel)


def _conv_tile(spec: Spec, kind: str) -> ConvTile:
    """Blocks as large as a program's registers and shared memory take, unless that leaves multiprocessors idle.

    Of the five steps, one goes to the offset that a load waits for: three blocks are in flight.
    """
    back = kind == "bwd_x"
    cin, cout = sides(spec, back)
    size = spec.dtype.itemsize
    steps = ((64, 1.0), (32, 1.1), (16, 1.3)) if size == 2 else ((32, 1.0), (16, 1.1))
    bk = min(steps[0][0], max(16, pow2(spec.taps * cin))) if cin < NARROW else fitted(cin, steps)
    if size == 8:
        return ConvTile(64, 16 if cout <= 16 else 64, 16, 4, 3)
    bn = fitted(cout, ((128, 1.0), (64, 1.15), (32, 1.5), (16, 2.0)))
    count = pixels(spec, back) * (phases(spec) if back else 1)
    if blocks((count, 128), (cout, bn)) * spec.groups < FILL:
        return ConvTile(64, bn, bk, 4, 5)
    return ConvTile(128, bn, bk, 8 if bn == 128 else 4, 5)


def _grad_tile(spec: Spec, kind: str) -> GradTile:
    part, each = sides(spec, False)
    size = spec.dtype.itemsize
    if size == 8:
        return GradTile(16, 32, 16, 1, 4, 2)
    bo = fitted(each, ((128, 1.0), (64, 1.1), (32, 1.3), (16, 1.6)))
    bc = fitted(part, ((64, 1.0), (32, 1.2), (16, 1.5)))
    if size == 4:
        return GradTile(32, min(bo, 64), bc, min(3, spec.taps), 4, 2)
    if generation(spec) == 9:
        return GradTile(64, bo, bc, min(3, spec.taps), 8 if bo == 128 else 4, 2)
    return GradTile(32, min(bo, 64), bc, min(3, spec.taps), 4, 3)


def _direct_tile(spec: Spec, kind: str) -> DirectTile:
    """A lane a thread; lanes along channels in NHWC, along pixels in NCHW."""
    channels = spec.c if kind == "bwd_x" else spec.c_out
    bn = min(128, pow2(channels)) if spec.layout == "nhwc" else 1
    return DirectTile(4, 128 // bn, bn, min(9, spec.taps), 4)

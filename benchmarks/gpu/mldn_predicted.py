"""What mldn_block's native CUDA kernels are expected to take in evaluation on an H200, written before any measurement.

Of a launch a layer: the largest of three times, bytes through device memory, instructions issued, products. Of a whole
block in shared memory, where a multiprocessor has the few warps of one image: also what those wait for. Cuts are those
of csrc/mldn_block/cuda_plan.h; instructions were counted or estimated in the machine code for sm_90a; what a step waits
for is a guess.
"""

from __future__ import annotations

from typing import NamedTuple

from gpu.mldn import BOTTLENECK, PATHS, BlockGroup
from gpu.plan import DTYPES

PROCESSORS, CLOCK, WARPS = 132, 1.98e9, 8
LARGEST, MOST = 227 * 1024, 99 * 1024  # bytes of shared memory of a block of threads: at most, and of one of two
LAUNCH = 1.5e-6
READS = 0.8  # of the copy's rate


class Form(NamedTuple):
    """Of a warp: pixels of a tile, inputs of a step, outputs and filters of a piece; instructions of a step of the
    first convolution (nchw, nhwc), of its end, of a step of the second for a tile of filters, and of its end."""

    pixels: int
    depth: int
    outputs: int
    filters: int
    first: tuple[int, int]
    end: int
    second: int
    last: int


HALF = Form(32, 16, 48, 32, (165, 200), 250, 48, 220)
PLAIN = Form(64, 4, 16, 4, (350, 320), 120, 20, 90)
WAITS = (350, 100)  # cycles of a warp's step of each convolution, with few warps beside it


def up(size: int, block: int) -> int:
    return -(-size // block) * block


class Cut(NamedTuple):
    resident: bool
    rows: int
    bands: int


def cut(group: BlockGroup, form: Form) -> Cut:
    n, _, h, w, _ = group.sizes
    size, mid = DTYPES[group.dtype].itemsize, BOTTLENECK * group.growth // PATHS
    pixel = up(mid, 16) + 8 if size == 2 else mid
    stage = WARPS * (1024 if size == 2 else form.depth * (form.pixels * size + 16))

    def room(rows: int, paths: int) -> int:
        frame = ((rows + 2) * (w + 1) + 1) * pixel * size
        return paths * frame + stage + 2 * (min(rows + 2, h) * w + 16)

    home = PATHS * group.widths[-1] * up(h * w, 8) * size
    if (n >= 66 or h * w <= 256) and home + room(h, PATHS) <= LARGEST:
        return Cut(True, h, 1)
    rows = max([r for r in range(1, h + 1) if room(r, 1) <= MOST] or [1])
    bands = -(-h // rows)
    while n * PATHS * bands < 264 and h // (2 * bands) >= 4:
        bands *= 2
    return Cut(False, -(-h // bands), bands)


def seconds(group: BlockGroup, name: str, copy: float, issue: float, tensor: float, margin: float) -> float | None:
    """None for Triton's kernels, for float64, and for what they do not compute."""
    if not name.startswith("cuda") or group.dtype == "fp64" or group.training or group.kind != "forward":
        return None
    n, _, h, w, _ = group.sizes
    size, kappa = DTYPES[group.dtype].itemsize, group.growth // PATHS
    mid, half = BOTTLENECK * kappa, size == 2
    form = HALF if half else PLAIN
    resident, rows, bands = cut(group, form)
    last = name.endswith("nhwc") and not resident
    tiles = n * PATHS * bands * up(min(rows + 2, h) * w, form.pixels) // form.pixels
    own = n * PATHS * bands * up(rows * w, form.pixels) // form.pixels
    # Of the second convolution: steps of 16 inputs that a tile's groups have (tensor cores), or all inputs of a group.
    outputs = kappa // group.groups
    if half:
        pairs = sum(
            up((min(o + 8, kappa) + outputs - 1) // outputs * (mid // group.groups), 16) // 16
            - o // outputs * (mid // group.groups) // 16
            for o in range(0, kappa, 8)
        )
        steps3 = 9 * pairs
    else:
        steps3 = 9 * mid * -(-outputs // 4)
    total, wait = 0.0, 0.0
    for width in group.widths:
        pieces = -(-mid // form.outputs)
        steps = -(-width // form.depth) * pieces
        instructions = tiles * (steps * form.first[last] + pieces * form.end)
        instructions += own * (steps3 * form.second + -(-kappa // form.filters) * form.last)
        products = (tiles * steps * form.depth * form.outputs + own * steps3 * 16 * 8) * form.pixels if half else 0
        moved = n * PATHS * h * w * size * (width * (rows + 2) / rows + kappa)
        traffic = 0.0 if resident else moved / (READS * copy)
        total += margin * max(traffic, 32 * instructions / issue, products / tensor)
        if resident:
            each = tiles * pieces / (n * WARPS)  # pieces of a warp
            wait += max(1.0, each) * (steps / pieces * WAITS[0] + steps3 / 2 * WAITS[1]) / CLOCK
            continue
        total += LAUNCH
    if resident:
        ends = n * PATHS * h * w * size * (2 * group.widths[0] + group.layers * kappa) / copy
        total = max(total + ends, -(-n // PROCESSORS) * wait)
    return total + 2 * LAUNCH  # what is packed; the first channels

"""What the native kernels of condensed_conv2d are expected to take on an H200, written down before any measurement.

The largest of three times, and a margin: bytes through device memory, at the rate that what is in flight allows,
instructions issued, products. Tiles are those of csrc/condensed_conv2d; instructions of a warp's step were counted in
the machine code for sm_90a. How long a byte takes, and for how much of a step loads are open, are guesses.
"""

from __future__ import annotations

from gpu.mldn import PICKING, CondensedGroup
from gpu.plan import DTYPES

LATENCY, OPEN, PROCESSORS = 0.8e-6, 0.8, 132
PIXELS, LAUNCH = 128, 1.5e-6
# Of a tile: bytes that a block has in flight, two units of 16 a thread.
FLIGHT = 256 * 32
# Blocks a multiprocessor, instructions of a warp's step (nchw, nhwc), and those of a tile's end (nchw, nhwc).
HALF = {32: (3, (400, 480), (150, 420)), 64: (2, (460, 540), (230, 760))}
PLAIN = (3, (620, 680), (60, 140))
SHALLOW = 0.6  # of a step's instructions, where half of its depth is enough
# Of the backward: the rate that its kernels reach, of the copy; columns of a tile; instructions of a warp's step and of
# a tile's end, of a warp's step of the weight gradient, of a chunk collected; launches, those of the index's order too.
RATE = 0.6
BACK = {2: (64, 300, 1200), 4: (32, 500, 800)}
GRAD, COLLECT, LAUNCHES = 420, 140, 14


def up(size: int, block: int) -> int:
    return -(-size // block) * block


def seconds(group: CondensedGroup, name: str, copy: float, issue: float, tensor: float, margin: float) -> float | None:
    """None for Triton's kernels and for float64."""
    if not name.startswith("cuda") or group.dtype == "fp64":
        return None
    forward = _forward(group, name, copy, issue, tensor, margin)
    return forward + _backward(group, copy, issue, margin) if group.kind == "step" else forward


def _forward(group: CondensedGroup, name: str, copy: float, issue: float, tensor: float, margin: float) -> float:
    n, c, h, w, _ = group.sizes
    last, size = name.endswith("nhwc"), DTYPES[group.dtype].itemsize
    picked, each, depth = c // PICKING, group.filters // PICKING, 64 // size
    width = 64 if size == 2 and each > 32 else 32
    blocks, step, end = HALF[width] if size == 2 else PLAIN
    ends = up(n * h * w, PIXELS) // PIXELS * PICKING * up(each, width) // width
    steps = ends * up(picked, depth) // depth
    rate = min(copy, PROCESSORS * blocks * FLIGHT * picked / up(picked, depth) * OPEN / LATENCY)
    read, written = group.elements()
    traffic = size * (read / rate + written / copy)
    each_step = step[last] * (SHALLOW if picked <= depth // 2 else 1)
    # Interleaved filters are written one by one, as many as the next power of two.
    filled = min(width, 1 << (each - 1).bit_length()) / width if last and size == 2 else 1
    instructions = 8 * 32 * (steps * each_step + ends * (end[0] + filled * (end[last] - end[0])))
    products = steps * depth * PIXELS * width if size == 2 else 0
    return margin * max(traffic, instructions / issue, products / tensor) + LAUNCH


def _backward(group: CondensedGroup, copy: float, issue: float, margin: float) -> float:
    """What is picked once more in float32, written and read; x twice, the output's gradient twice, x's once."""
    n, c, h, w, _ = group.sizes
    size, picked, each = DTYPES[group.dtype].itemsize, c // PICKING, group.filters // PICKING
    pixels, copied = n * h * w, 16 // size
    width, step, end = BACK[size]
    ends = up(pixels, PIXELS) // PIXELS * PICKING * up(picked, width) // width
    steps = ends * up(each, 64 // size) * size // 64
    blocks = PICKING * up(each, 32) // 32 * up(picked, 32) // 32
    passes = (
        (size * (c + group.filters) + 4 * c, 8 * (steps * step + ends * end)),
        (size * c + 4 * c, pixels * c / copied / 32 * COLLECT),
        (size * (c + group.filters), 8 * blocks * pixels / (8 * copied) * GRAD),
    )
    times = (max(pixels * moved / (RATE * copy), 32 * issued / issue) for moved, issued in passes)
    return margin * sum(times) + LAUNCHES * LAUNCH

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


def up(size: int, block: int) -> int:
    return -(-size // block) * block


def seconds(group: CondensedGroup, name: str, copy: float, issue: float, tensor: float, margin: float) -> float | None:
    """None for Triton's kernels, for float64, and for a step."""
    if not name.startswith("cuda") or group.kind != "forward" or group.dtype == "fp64":
        return None
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
    instructions = 8 * 32 * (steps * step[last] + ends * end[last])
    products = steps * depth * PIXELS * width if size == 2 else 0
    return margin * max(traffic, instructions / issue, products / tensor) + LAUNCH

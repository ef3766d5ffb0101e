"""What the matrix products of rsdc2d are expected to take on an H200, written down before any measurement.

The larger of four times, and a margin: bytes through device memory, bytes from the second cache into tiles,
instructions issued, products. Tiles are those of csrc/rsdc2d; instructions a step were read off the machine code for
sm_90a (benchmarks/results/cuda_static.csv). How much of a tile's left operand the first cache holds for the next taps
is a guess, HELD; the first run puts it right.
"""

from __future__ import annotations

from gpu.plan import DTYPES
from gpu.rsdc import TAPS, RsdcGroup

CACHE = 5.5e12  # bytes a second out of the second cache, assumed
HELD = 0.5  # of the pixels that taps read again, found in the first cache; assumed
LAUNCH = 2e-6
DEPTH, PROGRAMS, FILL = 32, 1024, 264
PRICES = {128: 1.0, 64: 1.1, 32: 1.4, 16: 2.0}  # of a tile's columns (csrc/rsdc2d/cuda_mma.cu)
# Rows and columns of a tile: warps, instructions of a warp's step.
TILES = {
    (256, 128): (8, 205),
    (128, 128): (4, 203),
    (256, 64): (4, 241),
    (128, 64): (4, 160),
    (128, 32): (4, 137),
    (128, 16): (4, 138),
}
PLAIN = (128, 64, 4, 1267)  # rows, columns, warps, instructions of float32, a step of 16 channels
GRAD = {128: 256, 64: 205}  # filters of a tile of the weight gradient, 128 columns each


def up(size: int, block: int) -> int:
    return -(-size // block) * block


def seconds(group: RsdcGroup, name: str, copy: float, issue: float, tensor: float, margin: float) -> float | None:
    """None where only the generic kernels run, for Triton's, and for a step."""
    n, c, h, w, _ = group.sizes
    count = group.window[1]
    part, each, pixels = c // count, group.filters // count, n * h * w
    half, whole = group.dtype in ("bf16", "fp16"), group.dtype == "fp32" and group.kind != "grad_w"
    if not name.startswith("cuda") or group.kind == "step" or part % 16 or not (half or whole):
        return None
    depth, columns = (each, part) if group.kind == "grad_x" else (part, each)
    size = DTYPES[group.dtype].itemsize
    read, written = group.elements()
    traffic, launches, before = size * (read + written), 2, 0.0
    if name.endswith("nchw"):  # what is read is copied into channels_last first
        moved = read + written if group.kind == "grad_w" else written if group.kind == "grad_x" else read
        before, launches = 2 * size * moved / copy, launches + 1 + (group.kind == "grad_w")
    if whole:
        rows, width, warps, instructions = PLAIN
        steps = up(pixels, rows) // rows * count * up(columns, width) // width * up(depth * TAPS, 16) / 16
        tiles = steps * 64 * (rows + width)
    elif group.kind == "grad_w":
        rows = 128 if -(-each // 64) % 2 == 0 else 64
        blocks = count * up(each, rows) // rows * up(part * TAPS, 128) // 128
        parts = max(1, PROGRAMS // blocks)
        traffic += 2 * 4 * parts * group.weights()
        width, warps, instructions = 128, 4, GRAD[rows]
        steps = blocks * pixels / DEPTH
        tiles = steps * DEPTH * size * (width + rows)
    else:
        width = min(PRICES, key=lambda q: up(columns, q) * PRICES[q])
        each_row = count * up(columns, width) // width
        rows = 256 if width >= 64 and up(pixels, 256) // 256 * each_row >= FILL else 128
        warps, instructions = TILES[rows, width]
        steps = up(pixels, rows) // rows * each_row * up(depth * TAPS, DEPTH) / DEPTH
        again = 1 - HELD * (TAPS - 1) / TAPS
        tiles = steps * DEPTH * size * (rows * again + width)
    products = steps * DEPTH * rows * width if half else 0
    times = (traffic / copy, tiles / CACHE, steps * warps * instructions * 32 / issue, products / tensor)
    return margin * (before + max(times)) + launches * LAUNCH

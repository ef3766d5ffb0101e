"""What the native CUDA kernels are expected to take on an H200, written down before any measurement.

    python -c "from gpu import predicted; print(predicted.table())" > results/gpu_predicted.csv     in benchmarks/

The larger of three times, and a margin: bytes through device memory, instructions issued, products on tensor cores.
Instructions an output were read off the machine code (benchmarks/results/cuda_static.csv); the rates are those of
the data sheet or assumed, and the first run's ceilings put them right.
"""

from __future__ import annotations

from gpu import condensed_predicted, mldn, mldn_predicted, rsdc, rsdc_predicted
from gpu.plan import DTYPES, Group, groups

COPY = 4.3e12  # bytes a second
ISSUE = 132 * 4 * 32 * 1.98e9  # lane instructions a second
TENSOR = 250e12  # multiply-adds a second of mma.sync, assumed
MARGIN, START = 1.15, 1.5e-6

# Lane instructions a pixel of the input's tile: reading it into shared memory.
STAGE = {"nchw": 9.0, "nhwc": 8.0}
# Lane instructions an output beyond the multiply-adds (tiles), or with them (tensor cores, all branches of the set).
TILE_OVERHEAD = 6.0
MMA = {(3,): 12.0, (5,): 15.0, (7,): 18.0, (3, 5, 7): 36.0}
MMA_GRAD = {3: 6.0, 5: 9.0, 7: 11.0}


def _taps(group: Group) -> int:
    return max(group.kernels) ** 2 if group.combine == "add" else sum(k * k for k in group.kernels)


def _halo(group: Group, layout: str) -> float:
    """Pixels of input tiles for each pixel of the input: what tiles of 16 x 32 or 8 x 16 outputs read around them."""
    _, _, h, w, s = group.sizes
    reach = 2 * (max(group.kernels) // 2)
    rows, columns = (min(h // s, 16), min(w // s, 32)) if layout == "nchw" else (8, 16)
    return (rows * s + reach) * (columns * s + (8 if layout == "nchw" else reach)) / (rows * s * columns * s)


def predicted(group: Group, name: str) -> float | None:
    """Seconds; None for Triton's kernels, for a step, and where only the generic kernels run."""
    if isinstance(group, rsdc.RsdcGroup):
        return rsdc_predicted.seconds(group, name, COPY, ISSUE, TENSOR, MARGIN)
    if isinstance(group, mldn.CondensedGroup):
        return condensed_predicted.seconds(group, name, COPY, ISSUE, TENSOR, MARGIN)
    if isinstance(group, mldn.BlockGroup):
        return mldn_predicted.seconds(group, name, COPY, ISSUE, TENSOR, MARGIN)
    layout, half = name.split()[-1], group.dtype in ("bf16", "fp16")
    stride = group.sizes[4]
    if not name.startswith("cuda") or group.kind == "step" or group.dtype == "fp64":
        return None
    if stride == 2 and (layout == "nhwc" or group.kind == "grad_x"):
        return None
    read, written = group.elements()
    branches, size = len(group.kernels), DTYPES[group.dtype].itemsize
    outputs = written // (branches if group.combine == "concat" else 1)  # pixels of one branch
    alone = group.kind == "grad_w" and group.combine == "concat"  # each branch reads x for itself
    traffic = size * (read * (branches if alone else 1) + written)
    tensor = 0.0
    if half and layout == "nchw" and stride == 1:
        # Maps are computed in columns of 8, the weight gradient in columns of 16 with windows of 24.
        wide = group.sizes[3]
        if group.kind == "grad_w":
            kernels = group.kernels if alone else (max(group.kernels),)
            waste = -(-wide // 16) * 16 / wide
            instructions = sum(waste * MMA_GRAD[k] + 2 * STAGE[layout] for k in kernels)
            tensor = sum(k * 24 for k in kernels) * outputs * waste / TENSOR
        else:
            waste = -(-wide // 8) * 8 / wide
            slabs = branches if group.kind == "grad_x" and group.combine == "concat" else 1
            instructions = waste * MMA[group.kernels] + 1.3 * slabs * STAGE[layout]
            tensor = sum(k * 16 for k in group.kernels) * outputs * waste / TENSOR
    else:
        tiles = branches if alone or (group.kind == "grad_x" and group.combine == "concat") else 1
        staged = tiles * _halo(group, layout) * STAGE[layout] * stride * stride
        instructions = _taps(group) + TILE_OVERHEAD * branches + staged
    return MARGIN * max(traffic / COPY, instructions * outputs / ISSUE, tensor) + START


def table() -> str:
    """Every call that has a prediction, in microseconds, beside the time of its least traffic at the copy's rate."""
    lines = ["shape,dtype,variant,pass,layout,predicted_us,traffic_us"]
    for group in (*groups(), *rsdc.groups(), *mldn.groups()):
        for layout in ("nchw", "nhwc"):
            seconds = predicted(group, f"cuda {layout}")
            if seconds is not None and group.dtype != "fp16":  # as bf16
                fields = (group.shape, group.dtype, group.variant, group.kind, layout)
                least = group.bytes() / COPY
                lines.append(",".join((*fields, f"{seconds * 1e6:.1f}", f"{least * 1e6:.1f}")))
    return "\n".join(lines)

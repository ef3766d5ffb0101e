"""What the Triton kernels compile to for a CUDA target; needs Triton, but no device.

    python benchmarks/triton_static.py              # writes benchmarks/results/triton_sm_static.csv
    python benchmarks/triton_static.py --op rsdc2d  # its rows anew, the others as they are

A row is one launch. `lane_instructions` are the warp instructions of the whole launch (those outside its loop, and the
loop's body times its trips), times 32 lanes, an output of the pass; all branches count as taken, and launches with
several loops have none. `loop` is the body alone.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import machine
import torch

if TYPE_CHECKING:
    from lightkernels._core.triton_static import Launch

machine.find_package()
Case = tuple[Any, ...]

SHAPES = ((64, 32, 32, 32), (64, 64, 16, 16), (128, 128, 8, 8), (8, 96, 56, 56), (32, 384, 14, 14), (32, 960, 7, 7))
BRANCHES = (((7,), "add"), ((5,), "add"), ((3, 5, 7), "concat"), ((3, 5, 7), "add"))
HALF = [
    (kind, shape, kernels, combine, torch.bfloat16, "nchw")
    for shape, (kernels, combine), kind in itertools.product(SHAPES, BRANCHES, ("fwd", "bwd_x", "bwd_w"))
    if shape in SHAPES[:1] or kernels != (5,)
]
ELEMENTWISE = [
    (kind, (64, 64, 32, 32), kernels, "concat", dtype, layout)
    for kernels, dtype, layout, kind in itertools.product(
        ((3,), (5,)), (torch.float32, torch.bfloat16), ("nchw", "nhwc"), ("fwd", "bwd_x", "bwd_w")
    )
    if dtype is torch.float32 or layout == "nhwc"
]
# rsdc2d: (pass, shape, (kernel size,), scope, dtype, layout), filters, groups; `kernels` is the window's side.
RSDC = [
    (("fwd", shape, (5,), "layer", torch.bfloat16, "nhwc"), shape[1], 1)
    for shape in ((128, 16, 32, 32), (128, 64, 16, 16), (128, 176, 16, 16), (256, 512, 7, 7))
]
RSDC += [
    ((kind, shape, (5,), "layer", dtype, "nhwc"), shape[1], 1)
    for shape, dtype, kind in itertools.product(
        ((256, 64, 56, 56), (256, 128, 28, 28)), (torch.bfloat16, torch.float32), ("fwd", "bwd_x", "bwd_w")
    )
]
RSDC += [
    ((kind, (128, 32, 32, 32), (5,), "filter", torch.bfloat16, layout), 8, 8)
    for layout, kind in itertools.product(("nhwc", "nchw"), ("fwd", "bwd_x", "bwd_w"))
]
# mldn_block: as above, but `kernels` is the growth, and `combine` the form; two layers of two paths, four groups.
MLDN = [
    (kind, (128, 16, 32, 32), (growth,), form, dtype, layout)
    for growth, form, dtype, layout in (
        (24, "version 1", torch.bfloat16, "nhwc"),
        (24, "version 1", torch.float32, "nchw"),
        (24, "version 1", torch.float64, "nchw"),
        (64, "version 1", torch.bfloat16, "nhwc"),
        (24, "dropout", torch.float16, "nchw"),
        (24, "version 2", torch.bfloat16, "nhwc"),
        (24, "condensed", torch.bfloat16, "nhwc"),
        (24, "condensed version 2", torch.bfloat16, "nhwc"),
    )
    for kind in ("fwd", "bwd")[: 2 if form.startswith("version") else 1]
]
# condensed_conv2d: `kernels` is the number of filters, `combine` the activation; four groups, a quarter for each.
CONDENSED = [
    (kind, shape, (filters,), "relu", dtype, layout)
    for shape, filters in (((256, 240, 16, 16), 64), ((64, 480, 28, 28), 128))
    for dtype, layout in (
        (torch.bfloat16, "nhwc"),
        (torch.bfloat16, "nchw"),
        (torch.float32, "nchw"),
        (torch.float64, "nhwc"),
    )
    for kind in ("fwd", "bwd")
    if filters == 64 or dtype is torch.bfloat16
]
COLUMNS = (
    *("op", "pass", "kernels", "combine", "n", "c", "h", "w", "dtype", "layout", "sm", "kernel", "programs", "warps"),
    *("registers", "shared", "spills", "tensor_core", "instructions_outside", "loop", "trips", "lane_instructions"),
)
TENSOR_CORE = ("HMMA", "HGMMA", "DMMA", "UTCHMMA")


def depthwise(case: Case) -> tuple[Any, list[Launch]]:
    from lightkernels._core.spec import TensorMeta, dense_stride
    from lightkernels.ops.multi_dwconv2d.op import OP
    from lightkernels.ops.multi_dwconv2d.triton_launch import recorded

    kind, shape, kernels, combine, dtype, layout = case
    meta = TensorMeta(shape, dense_stride(shape, layout), dtype, torch.device("meta"))
    ones = [1] * len(kernels)
    spec = OP.spec_of(meta, None, None, (list(kernels), [shape[1]] * len(kernels), [1, 1], ones, combine, False))
    return spec, recorded(spec, kind)


def random_taps(case: Case, filters: int, groups: int) -> tuple[Any, list[Launch]]:
    from lightkernels._core.spec import TensorMeta, dense_stride
    from lightkernels.ops.rsdc2d.op import OP
    from lightkernels.ops.rsdc2d.triton_launch import recorded

    kind, shape, (k,), scope, dtype, layout = case
    meta = TensorMeta(shape, dense_stride(shape, layout), dtype, torch.device("meta"))
    taps = torch.empty((filters if scope == "filter" else 1, 9), dtype=torch.int64, device="meta")
    spec = OP.spec_of(meta, None, None, (taps, filters, k, [1, 1], [k // 2] * 2, [1, 1], groups))
    return spec, recorded(spec, kind)


def blocks(case: Case) -> tuple[Any, list[Launch]]:
    from lightkernels._core.spec import TensorMeta, dense_stride
    from lightkernels.ops.mldn_block.spec import Inputs, Spec
    from lightkernels.ops.mldn_block.triton_launch import recorded

    kind, shape, (growth,), form, dtype, layout = case
    device, wide = torch.device("meta"), torch.float64 if dtype is torch.float64 else torch.float32

    def meta(size: tuple[int, ...], of: torch.dtype = dtype) -> TensorMeta:
        stride = dense_stride(size, layout) if len(size) == 4 else (1,) * len(size)
        return TensorMeta(size, stride, of, device)

    kappa, c = growth // 2, shape[1] // 2
    mid, columns, condensed, second = 4 * kappa, 2 * (2 * c + kappa), "condensed" in form, "version 2" in form
    given = {"weight1": meta((mid * columns // (1 + condensed),)), "weight3": meta((4 * kappa * mid // 4 * 9,))}
    given |= {"affine1": meta((2, columns), wide), "affine2": meta((2, 4 * mid), wide)}
    if second:
        given |= {"weight_sfr": meta((columns * kappa // (1 + condensed),)), "affine3": meta((2, 4 * kappa), wide)}
    if condensed:  # two groups, half of the channels each
        given |= {"running1": given["affine1"], "running2": given["affine2"], "index": meta((columns,), torch.int64)}
    if condensed and second:
        given |= {"running3": given["affine3"], "index_sfr": given["index"]}
    if form == "dropout":
        given["seed"] = meta((), torch.int64)
    values = (2, 2, growth, 4, 4, 1 + second, "xor1", 3, 1e-5, 0.1 if form == "dropout" else 0.0)
    spec = Spec.of(Inputs(x=meta(shape), **given), *values, 2 * condensed, 1 + condensed, not condensed)
    return spec, _once(recorded(spec, kind))


def condensed(case: Case) -> tuple[Any, list[Launch]]:
    from lightkernels._core.spec import TensorMeta, dense_stride
    from lightkernels.ops.condensed_conv2d.spec import Inputs, Spec
    from lightkernels.ops.condensed_conv2d.triton_launch import recorded

    kind, shape, (filters,), activation, dtype, layout = case
    device, picked = torch.device("meta"), shape[1] // 4
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    norm = TensorMeta((4 * picked,), (1,), wide, device)
    x = TensorMeta(shape, dense_stride(shape, layout), dtype, device)
    weight = TensorMeta((filters, picked), (picked, 1), dtype, device)
    index = TensorMeta((4, picked), (picked, 1), torch.int64, device)
    spec = Spec.of(Inputs(x, weight, norm, norm, index), activation)
    return spec, _once(recorded(spec, kind))


def _once(launches: list[Launch]) -> list[Launch]:
    """The last of each kernel: layers differ in numbers that the kernels take as they come."""
    return list({launch.kernel.__name__: launch for launch in launches}.values())


def rows(op: str, case: Case, capabilities: list[int], *more: int) -> list[dict[str, object]]:
    from lightkernels._core.triton_static import compile_for

    kind, shape, kernels, combine, dtype, layout = case
    made = {"multi_dwconv2d": depthwise, "rsdc2d": random_taps, "mldn_block": blocks, "condensed_conv2d": condensed}
    spec, launches = made[op](case, *more)  # type: ignore[operator]
    outputs = math.prod(spec.x_shape if kind in ("bwd", "bwd_x") else spec.y_shape)
    found = []
    for launch, capability in itertools.product(launches, capabilities):
        code = compile_for(launch, capability)
        lanes = code.lane_instructions(launch, outputs)
        values = (
            op,
            kind,
            "+".join(map(str, kernels)),
            combine,
            *shape,
            str(dtype).removeprefix("torch."),
            layout,
            capability,
            launch.kernel.__name__,
            launch.programs,
            launch.options["num_warps"],
            code.registers,
            code.shared,
            code.spills,
            sum(code.opcodes[name] for name in TENSOR_CORE),
            code.outside,
            code.loop,
            launch.trips or "",
            "" if math.isnan(lanes) else f"{lanes:.1f}",
        )
        found.append(dict(zip(COLUMNS, values, strict=True)))
    return found


def main() -> None:
    import triton

    from lightkernels._core.triton_static import ptxas_version

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sm", type=int, nargs="+", default=[90], help="targets, e.g. 80 90 100")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "triton_sm_static.csv")
    names = ("multi_dwconv2d", "rsdc2d", "mldn_block", "condensed_conv2d")
    parser.add_argument("--op", choices=names, help="only its rows; the others are kept")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    calls = [("multi_dwconv2d", case) for case in HALF + ELEMENTWISE] + [("rsdc2d", *row) for row in RSDC]
    calls += [("mldn_block", case) for case in MLDN] + [("condensed_conv2d", case) for case in CONDENSED]
    kept = []
    if options.op and options.out.exists():
        lines = [line for line in options.out.read_text().splitlines() if not line.startswith("#")]
        kept = [row for row in csv.DictReader(lines) if row["op"] != options.op]
    with options.out.open("w", newline="") as file:
        file.write(f"# triton {triton.__version__}, ptxas {ptxas_version()}, torch {torch.__version__}\n")
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
        for op, case, *more in calls:
            for row in rows(op, case, options.sm, *more) if options.op in (None, op) else ():
                writer.writerow(row)
                file.flush()
                name = f"{row['pass']:<6}{row['kernels']:<6}{row['combine']:<7}{row['kernel']:<15}"
                print(f"{name} sm_{row['sm']}: {row['registers']} registers, {row['lane_instructions']} an output")


if __name__ == "__main__":
    main()

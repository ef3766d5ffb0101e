"""What the Triton kernels of multi_dwconv2d compile to for a CUDA target; needs Triton, but no device.

    python benchmarks/triton_static.py        # writes benchmarks/results/triton_sm_static.csv

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

import machine
import torch

machine.find_package()

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
COLUMNS = (
    *("pass", "kernels", "combine", "n", "c", "h", "w", "dtype", "layout", "sm", "kernel", "programs", "warps"),
    *("registers", "shared", "spills", "instructions_outside", "loop", "trips", "lane_instructions"),
)


def rows(case: tuple[object, ...], capabilities: list[int]) -> list[dict[str, object]]:
    from lightkernels._core.spec import TensorMeta, dense_stride
    from lightkernels._core.triton_static import compile_for
    from lightkernels.ops.multi_dwconv2d.op import OP
    from lightkernels.ops.multi_dwconv2d.triton_launch import recorded

    kind, shape, kernels, combine, dtype, layout = case
    meta = TensorMeta(shape, dense_stride(shape, layout), dtype, torch.device("meta"))
    ones = [1] * len(kernels)
    spec = OP.spec_of(meta, None, None, (list(kernels), [shape[1]] * len(kernels), [1, 1], ones, combine, False))
    outputs = math.prod(spec.x_shape if kind == "bwd_x" else spec.y_shape)
    found = []
    for launch, capability in itertools.product(recorded(spec, kind), capabilities):
        code = compile_for(launch, capability)
        lanes = code.lane_instructions(launch, outputs)
        values = (
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
            code.outside,
            code.loop,
            launch.arguments.get("PER", ""),
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
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as file:
        file.write(f"# triton {triton.__version__}, ptxas {ptxas_version()}, torch {torch.__version__}\n")
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for case in HALF + ELEMENTWISE:
            for row in rows(case, options.sm):
                writer.writerow(row)
                file.flush()
                name = f"{row['pass']:<6}{row['kernels']:<6}{row['combine']:<7}{row['kernel']:<15}"
                print(f"{name} sm_{row['sm']}: {row['registers']} registers, {row['lane_instructions']} an output")


if __name__ == "__main__":
    main()

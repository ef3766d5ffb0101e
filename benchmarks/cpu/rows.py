"""The tables of speed goals: what is measured, and what counts as reached."""

from __future__ import annotations

import torch

from cpu import mldn, rsdc, small
from cpu.common import Row, Target
from cpu.speed import arithmetic, depthwise, every, nchw, nhwc, scaling, speedup, upcast

WIDE = {
    "upcast": upcast,
    "all": every,
}
SIXTEEN = (
    Target("upcast", "over upcast, convolve, downcast", 2.0, 1.3),
    Target("all", "over these and native 16-bit"),
)


BEST = "over the best"
LAYOUTS = {"nchw": nchw, "nhwc": nhwc}
SINGLE = (Target("best", BEST, 1.6, 1.1),)
NATIVE = (Target("best", "over native", 10, 5),)
MERGED = "over the best (merged 7x7)"
BF16, FP16, FP64 = torch.bfloat16, torch.float16, torch.float64

ROWS = (
    Row(
        "concat_forward",
        "concat 3+5+7 forward",
        (Target("best", BEST, 2.2, 1.5),),
        speedup(depthwise("concat"), "forward", compile=True),
    ),
    Row(
        "concat_step",
        "concat training step",
        (Target("nchw", "over the best NCHW", 10, 6), Target("nhwc", "over the best channels_last", 5, 3)),
        speedup(depthwise("concat"), "step", against=LAYOUTS, compile=True),
    ),
    Row(
        "add_step",
        "add training step",
        (Target("best", MERGED, 3, 2),),
        speedup(depthwise("add"), "step", compile=True),
    ),
    Row(
        "grad_w_7",
        "7x7 weight gradient",
        (Target("nchw", "over NCHW", 35, 20), Target("nhwc", "over channels_last", 10, 5)),
        speedup(depthwise("single_7"), "grad_w", against=LAYOUTS),
    ),
    Row("single_3_forward", "single 3x3 forward", SINGLE, speedup(depthwise("single_3"), "forward")),
    Row("single_7_forward", "single 7x7 forward", SINGLE, speedup(depthwise("single_7"), "forward")),
    Row(
        "add_forward",
        "add forward",
        (Target("best", MERGED, 1.6, 1.1),),
        speedup(depthwise("add"), "forward", compile=True),
    ),
    Row("bf16_forward", "bf16 concat forward", SIXTEEN, speedup(depthwise("concat", BF16), "forward", WIDE)),
    Row("bf16_step", "bf16 concat training step", SIXTEEN, speedup(depthwise("concat", BF16), "step", WIDE)),
    Row("fp16_forward", "fp16 concat forward", SIXTEEN, speedup(depthwise("concat", FP16), "forward", WIDE)),
    Row("fp16_step", "fp16 concat training step", SIXTEEN, speedup(depthwise("concat", FP16), "step", WIDE)),
    Row(
        "fp64_forward",
        "fp64 concat forward",
        NATIVE,
        speedup(depthwise("concat", FP64), "forward"),
    ),
    Row(
        "fp64_step",
        "fp64 concat training step",
        NATIVE,
        speedup(depthwise("concat", FP64), "step"),
    ),
    Row(
        "arithmetic",
        "arithmetic rate, concat forward, 32x32",
        (Target("mm", "of torch.mm's rate", 0.75, 0.6),),
        arithmetic,
    ),
    Row("threads", "2 threads over 1", (Target("threads", "concat forward and step", 1.9, 1.7),), scaling),
    Row("overhead", "call on 1x4x8x8, one 3x3", small.OVERHEAD, small.overhead),
    Row("memory", "memory beyond the outputs", small.MEMORY, small.memory),
)

TABLES = {"multi_dwconv2d": ROWS, "rsdc2d": rsdc.ROWS, "mldn_block": mldn.ROWS}

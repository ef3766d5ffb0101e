"""Launches of the Triton kernels of `condensed_conv2d`; imported with the first call, because they need Triton."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton.language as tl
from torch import Tensor

from lightkernels._core import triton_math
from lightkernels._core.triton_host import blocks, dot_mode, pow2
from lightkernels.ops.condensed_conv2d import triton_kernels
from lightkernels.ops.condensed_conv2d.spec import Inputs, Spec

if TYPE_CHECKING:
    from lightkernels._core.triton_static import Launch

SMALL = {"num_warps": 4, "num_stages": 1}
PROGRAMS = 512  # about, of a weight gradient; a constant, so that its sums have one order everywhere


class Tiles:
    """Pixels of a program; columns of a result and of a step; weights of a gradient's program."""

    def __init__(self, spec: Spec) -> None:
        wide = spec.dtype.itemsize == 8
        self.bm = 32 if wide else 64  # of 128, what is picked, scaled and activated would fill the registers
        self.each = _fitted(spec.c_out // spec.groups, 32 if wide else 128)
        self.picked = _fitted(spec.picked, 32 if wide else 64)
        self.bk = 16 if wide else 32
        self.run = 16 if wide else 32  # pixels of a step of the weight gradient


def _fitted(size: int, most: int) -> int:
    return min(most, max(16, pow2(size)))


def dense(t: Inputs) -> Inputs:
    return Inputs(t.x, *(one.contiguous() for one in t[1:]))


def _pixels(spec: Spec, x: Tensor) -> dict[str, int]:
    """Sizes of an image and x's strides; an image whose rows have no gap between them is one row."""
    n, c, h, w = x.stride()
    whole = spec.h == 1 or h == spec.w * w
    sizes = {"H": 1, "W": spec.h * spec.w} if whole else {"H": spec.h, "W": spec.w}
    return {**sizes, "XN": n, "XC": c, "XH": h, "XW": w}


def _flat(spec: Spec, name: str, channels: int) -> dict[str, int]:
    """Strides of images, channels and pixels of a dense tensor in the call's layout."""
    pixels, last = spec.h * spec.w, spec.layout == "nhwc"
    names = (f"{name}N", f"{name}C", f"{name}Q")
    return dict(zip(names, (channels * pixels, 1 if last else pixels, channels if last else 1), strict=True))


def _common(spec: Spec, t: Inputs) -> dict[str, Any]:
    acc = tl.float64 if spec.acc_dtype is torch.float64 else tl.float32
    found = {**_pixels(spec, t.x), "GROUPS": spec.groups, "PICKED": spec.picked, "EACH": spec.c_out // spec.groups}
    return {**found, "HARD": spec.activation == "hardswish", "MODE": dot_mode(spec.dtype), "ACC": acc}


def fwd(spec: Spec, t: Inputs, y: Tensor) -> None:
    tiles, m = Tiles(spec), spec.n * spec.h * spec.w
    programs = blocks((m, tiles.bm), (spec.c_out // spec.groups, tiles.each)) * spec.groups
    triton_kernels.forward[(programs,)](
        t.x, t.weight, t.index, t.scale, t.shift, y, m, spec.c, **_common(spec, t), **_flat(spec, "Y", spec.c_out),
        BM=tiles.bm, BN=tiles.each, BK=tiles.bk, num_warps=4, num_stages=3,
    )  # fmt: skip


def bwd(spec: Spec, g: Tensor, t: Inputs, gx: Tensor, gweight: Tensor, gscale: Tensor, gshift: Tensor) -> None:
    tiles, m, total = Tiles(spec), spec.n * spec.h * spec.w, spec.groups * spec.picked
    common, each = _common(spec, t), spec.c_out // spec.groups
    # Each picked channel's, then those of the same channel of x together.
    picked = gx.new_empty((m * total,), dtype=spec.acc_dtype)
    count = blocks((m, tiles.bm))
    part = gx.new_empty((count, 2 * total), dtype=spec.acc_dtype)
    triton_kernels.grad_picked[(count * blocks((spec.picked, tiles.picked)) * spec.groups,)](
        g, t.x, t.weight, t.index, t.scale, t.shift, picked, part, m, spec.c, **common, **_flat(spec, "G", spec.c_out),
        **_flat(spec, "O", total), BM=tiles.bm, BN=tiles.picked, BK=tiles.bk, num_warps=4, num_stages=3,
    )  # fmt: skip
    sums = gx.new_empty((2, total), dtype=spec.acc_dtype)
    _sum(part, sums)
    gscale.copy_(sums[0])
    gshift.copy_(sums[1])
    _collect(spec, t.index, picked, gx)

    items = blocks((m, tiles.run))
    programs = blocks((each, tiles.each), (spec.picked, tiles.picked)) * spec.groups
    per = -(-items // max(1, min(items // 4, PROGRAMS // programs)))
    part = gx.new_empty((-(-items // per), spec.c_out * spec.picked), dtype=spec.acc_dtype)
    triton_kernels.grad_weight[(programs * part.shape[0],)](
        g, t.x, t.index, t.scale, t.shift, part, m, spec.c, items, per, **common, **_flat(spec, "G", spec.c_out),
        BM=tiles.run, BO=tiles.each, BK=tiles.picked, num_warps=4, num_stages=3,
    )  # fmt: skip
    _sum(part, gweight)


def _collect(spec: Spec, index: Tensor, picked: Tensor, gx: Tensor) -> None:
    """A channel's gradients in the order of the index, so that sums do not change from run to run."""
    flat, order = index.flatten().sort(stable=True)
    bounds = torch.searchsorted(flat, torch.arange(spec.c + 1, device=index.device))
    m, total = spec.n * spec.h * spec.w, spec.groups * spec.picked
    bm, bn = (32, min(64, max(16, pow2(spec.c)))) if spec.layout == "nhwc" else (128, 16)
    triton_kernels.collect[(blocks((m, bm), (spec.c, bn)),)](
        picked, order, bounds, gx, m, spec.c, H=1, W=spec.h * spec.w, **_flat(spec, "G", total),
        **_flat(spec, "X", spec.c), BM=bm, BN=bn, **SMALL,
    )  # fmt: skip


def _sum(part: Tensor, out: Tensor) -> None:
    parts, size = part.shape[0], out.numel()
    triton_math.sum_parts[(blocks((size, 128)),)](part, out, parts, size, BP=min(32, pow2(parts)), BE=128, **SMALL)


def recorded(spec: Spec, kind: str) -> list[Launch]:
    """The launches of `fwd` or `bwd`, noted on meta tensors instead of run."""
    from lightkernels._core.triton_static import record
    from lightkernels.ops.condensed_conv2d import triton

    def meta(shape: tuple[int, ...], dtype: torch.dtype = spec.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    x = torch.empty_strided(spec.x_shape, spec.x_stride, dtype=spec.dtype, device="meta")
    norms = [meta((spec.groups * spec.picked,), spec.acc_dtype) for _ in range(2)]
    t = Inputs(x, meta((spec.c_out, spec.picked)), *norms, meta((spec.groups, spec.picked), torch.int64))
    g = torch.empty_strided(spec.y_shape, spec.y_stride, dtype=spec.dtype, device="meta")
    with record(triton_kernels, triton_math) as launches:
        triton.infer(spec, t) if kind == "fwd" else triton.bwd(spec, g, t, triton.Outputs(g))
    return launches

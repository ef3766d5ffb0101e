"""What Triton kernels of several operators have in common."""

import triton
import triton.language as tl


@triton.jit
def product(a, b, acc, MODE: tl.constexpr):
    """acc + a @ b. MODE: the precision of float32, or "wide", operands as float32 (the interpreter has no bfloat16)."""
    if MODE == "wide":
        acc = tl.dot(a.to(tl.float32), b.to(tl.float32), acc, out_dtype=acc.dtype)
    else:
        acc = tl.dot(a, b, acc, input_precision=MODE, out_dtype=acc.dtype)
    return acc


@triton.jit
def relu(v):
    """NaN stays NaN, as in PyTorch."""
    return tl.maximum(v, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def decoded(cell, K: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr):
    """Row and column offset of cells y * K + x, and whether they lie in the window; 0 stands for one that does not."""
    live = (cell >= 0) & (cell < K * K)
    cell = tl.where(live, cell, 0).to(tl.int32)
    return cell // K * DH - PH, cell % K * DW - PW, live


@triton.jit
def tap_offset(taps, i, K: tl.constexpr, TAPS: tl.constexpr):
    """`decoded` of the i-th of `taps`, or without TAPS of cell i, about the middle of the window."""
    cell = i
    if TAPS:
        cell = tl.load(taps + i)
    return decoded(cell, K, 1, 1, K // 2, K // 2)


@triton.jit(do_not_specialize=["PARTS", "SIZE"])
def sum_parts(part, out, PARTS, SIZE, BP: tl.constexpr, BE: tl.constexpr):
    """out[e] = the sum over PARTS rows p of part[p, e], always in the same order."""
    e = tl.program_id(0) * BE + tl.arange(0, BE)
    total = tl.zeros((BP, BE), part.dtype.element_ty)
    for first in range(0, PARTS, BP):
        p = first + tl.arange(0, BP)
        at = part + (p.to(tl.int64) * SIZE)[:, None] + e[None, :]
        total += tl.load(at, mask=(p < PARTS)[:, None] & (e < SIZE)[None, :], other=0.0)
    tl.store(out + e, tl.sum(total, axis=0).to(out.dtype.element_ty), mask=e < SIZE)

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

# ruff: noqa: RUF005 (Triton has no starred tuples)
"""Weight gradient of `multi_dwconv2d` in Triton: a partial sum a program, then one sum in a fixed order; no atomics.

A program owns a block of channels and a run of (image, rows, columns) tiles. Its accumulators are whole tiles, one a
tap, reduced across the tile once at the end. Partial sums lie in the order of the packed weight, so that the second
stage is the same for every combination: a tap shared by several branches is written to each of them.
"""

import triton
import triton.language as tl

from lightkernels.ops.multi_dwconv2d.triton_kernels import (
    area,
    at,
    prefix,
    schedule,
    size,
    slab_sources,
    slab_taps,
)


@triton.jit
def grad_taps(
    g, x, part, G0, X0, W0, C, HI, WI, HO, WO, GN, GC, GH, GW, XN, XC, XH, XW, ITEMS, PER, TOTAL,
    KERNELS: tl.constexpr, DILATIONS: tl.constexpr, COMBINE: tl.constexpr, STRIDE: tl.constexpr,
    FIRST: tl.constexpr, LAST: tl.constexpr, EXACT: tl.constexpr, ACC: tl.constexpr,
    TH: tl.constexpr, BC: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """Taps of output slabs FIRST..LAST, unrolled. TH divides HO: a row outside would meet an Inf of x with a zero."""
    TAPS: tl.constexpr = slab_taps(KERNELS, DILATIONS, COMBINE, FIRST, LAST)
    SH: tl.constexpr = at(STRIDE, 0)
    SW: tl.constexpr = at(STRIDE, 1)
    LOADS: tl.constexpr = schedule(TAPS, False, SH, TH)
    cb = tl.cdiv(C, BC)
    wb = tl.cdiv(WO, BW)
    hb = HO // TH
    p = tl.program_id(0) // cb
    c = (tl.program_id(0) % cb) * BC + tl.arange(0, BC)
    c_ok = c < C
    x_row = tl.cast(XH, tl.int64)
    g_row = tl.cast(GH, tl.int64)
    g_slab = tl.cast(GC, tl.int64) * C
    x_c = x + X0 + (c.to(tl.int64) * XC)[:, None]
    g_c = g + G0 + (c.to(tl.int64) * GC)[:, None]

    accs = (tl.zeros((BC, BW), ACC),) * size(TAPS)
    for item in range(p * PER, tl.minimum((p + 1) * PER, ITEMS)):
        ow = (item % wb) * BW + tl.arange(0, BW)
        oh0 = (item // wb) % hb * TH
        n = tl.cast(item // wb // hb, tl.int64)
        g_at = g_c + (n * GN + oh0 * g_row) + (ow.to(tl.int64) * GW)[None, :]
        x_at = x_c + (n * XN + oh0 * SH * x_row) + (ow.to(tl.int64) * SW * XW)[None, :]
        g_ok = (ow < WO)[None, :] & c_ok[:, None]
        grads = ()
        for m in tl.static_range(FIRST, LAST):
            for t in tl.static_range(TH):
                v = tl.load(g_at + (m * g_slab + t * g_row), mask=g_ok, other=0.0).to(ACC)
                for q in tl.static_range(1, size(slab_sources(COMBINE, m, size(KERNELS)))):
                    v += tl.load(g_at + ((m + q) * g_slab + t * g_row), mask=g_ok, other=0.0).to(ACC)
                grads += (v,)
        for e in tl.static_range(size(LOADS)):
            row = oh0 * SH + at(LOADS, e, 1)
            col = ow * SW + at(LOADS, e, 2)
            ok = ((row >= 0) & (row < HI)) & ((col >= 0) & (col < WI))[None, :] & g_ok
            v = tl.load(x_at + (at(LOADS, e, 1) * x_row + at(LOADS, e, 2) * XW), mask=ok, other=0.0).to(ACC)
            for u in tl.static_range(size(at(LOADS, e, 3))):
                term = v * grads[at(LOADS, e, 3, u, 0)]
                if EXACT:
                    term = tl.where(ok, term, 0.0)
                accs = (
                    accs[: at(LOADS, e, 3, u, 1)]
                    + (accs[at(LOADS, e, 3, u, 1)] + term,)
                    + accs[at(LOADS, e, 3, u, 1) + 1 :]
                )

    dst = part + (tl.cast(p, tl.int64) * TOTAL + W0)
    for i in tl.static_range(size(TAPS)):
        total = tl.sum(accs[i], axis=1)
        for j in tl.static_range(size(at(TAPS, i, 3))):
            start = C * prefix(KERNELS, at(TAPS, i, 3, j, 0)) + at(TAPS, i, 3, j, 1)
            tl.store(dst + (start + c * area(KERNELS, at(TAPS, i, 3, j, 0))), total, mask=c_ok)


@triton.jit
def grad_table(
    g, x, part, taps, terms, term_starts, G0, X0, W0, C, HI, WI, HO, WO, GN, GC, GH, GW, XN, XC, XH, XW,
    ITEMS, PER, TOTAL, TAP0, TAP1, SLAB, SLAB1, SH: tl.constexpr, SW: tl.constexpr,
    EXACT: tl.constexpr, ACC: tl.constexpr, CHUNK: tl.constexpr, BC: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """`grad_taps` for any number of taps: CHUNK of the table's taps TAP0..TAP1 a program, all of output slab SLAB.

    The gradient is the sum of output slabs SLAB..SLAB1.
    """
    cb = tl.cdiv(C, BC)
    chunks = tl.cdiv(TAP1 - TAP0, CHUNK)
    wb = tl.cdiv(WO, BW)
    c = (tl.program_id(0) % cb) * BC + tl.arange(0, BC)
    first = TAP0 + (tl.program_id(0) // cb % chunks) * CHUNK
    p = tl.program_id(0) // cb // chunks
    c_ok = c < C
    g_slab = tl.cast(GC, tl.int64) * C
    x_c = x + X0 + (c.to(tl.int64) * XC)[:, None]
    g_c = g + G0 + (c.to(tl.int64) * GC)[:, None]
    accs = (tl.zeros((BC, BW), ACC),) * CHUNK
    for item in range(p * PER, tl.minimum((p + 1) * PER, ITEMS)):
        ow = (item % wb) * BW + tl.arange(0, BW)
        oh = (item // wb) % HO
        n = tl.cast(item // wb // HO, tl.int64)
        g_ok = (ow < WO)[None, :] & c_ok[:, None]
        g_at = g_c + (n * GN + oh * tl.cast(GH, tl.int64)) + (ow.to(tl.int64) * GW)[None, :]
        grad = tl.zeros((BC, BW), ACC)
        for m in range(SLAB, SLAB1):
            grad += tl.load(g_at + m * g_slab, mask=g_ok, other=0.0).to(ACC)
        for i in tl.static_range(CHUNK):
            live = first + i < TAP1
            row = oh * SH + tl.load(taps + (first + i) * 3 + 1, mask=live, other=0)
            col = ow * SW + tl.load(taps + (first + i) * 3 + 2, mask=live, other=0)
            ok = (live & (row >= 0) & (row < HI)) & ((col >= 0) & (col < WI))[None, :] & g_ok
            x_at = x_c + (n * XN + row * tl.cast(XH, tl.int64)) + (col.to(tl.int64) * XW)[None, :]
            term = grad * tl.load(x_at, mask=ok, other=0.0).to(ACC)
            if EXACT:
                term = tl.where(ok, term, 0.0)
            accs = accs[:i] + (accs[i] + term,) + accs[i + 1 :]

    dst = part + (tl.cast(p, tl.int64) * TOTAL + W0)
    for i in tl.static_range(CHUNK):
        total = tl.sum(accs[i], axis=1)
        if first + i < TAP1:
            for j in range(tl.load(term_starts + first + i), tl.load(term_starts + first + i + 1)):
                start = tl.load(terms + j * 3).to(tl.int64) * C + tl.load(terms + j * 3 + 2)
                tl.store(dst + start + c.to(tl.int64) * tl.load(terms + j * 3 + 1), total, mask=c_ok)


@triton.jit
def sum_parts(part, out, TOTAL, PARTS, BP: tl.constexpr, BE: tl.constexpr):
    """out[e] = sum over p of part[p, e], always in the same order."""
    e = tl.program_id(0) * BE + tl.arange(0, BE)
    row = tl.arange(0, BP)
    acc = tl.zeros((BP, BE), part.dtype.element_ty)
    for p in range(0, PARTS, BP):
        at_p = (p + row).to(tl.int64) * TOTAL
        acc += tl.load(
            part + at_p[:, None] + e[None, :], mask=(p + row < PARTS)[:, None] & (e < TOTAL)[None, :], other=0.0
        )
    tl.store(out + e, tl.sum(acc, axis=0).to(out.dtype.element_ty), mask=e < TOTAL)

# ruff: noqa: RUF005 (Triton has no starred tuples)
"""Element-wise Triton kernels of `multi_dwconv2d`: every shape, stride, dilation, layout and dtype.

One kernel serves the forward pass and the input gradient, because both are a sum over taps: the forward reads its
input at `stride * o + offset`, and the input gradient is one stride-1 sum for each phase of the stride.
Which taps those are is decided at compile time (`forward_taps`, `adjoint_taps`), and `schedule` orders the reads so
that an input element, once loaded, serves every output row and every branch of the program.
Kernels too large to unroll walk a table of taps instead. Tiles are [channels, columns] with strides from outside, so
that NCHW (vectors along W) and NHWC (vectors along C) differ in the tile's shape alone.
"""

import triton
import triton.language as tl
from triton import knobs

# The interpreter runs plain Python; unwrapping every argument there would cost far more than the kernels.
constexpr_function = (lambda fn: fn) if knobs.runtime.interpret else triton.constexpr_function


@constexpr_function
def at(table, i, j=None, k=None, m=None):
    """table[i][j]...: subscripts of nested compile-time tuples, which a kernel cannot write."""
    value = table[i]
    for index in (j, k, m):
        value = value if index is None else value[index]
    return value


@constexpr_function
def size(table):
    return len(table)


@constexpr_function
def prefix(kernels, m):
    """Branch m starts at channels * prefix in the packed weight."""
    return sum(k * k for k in kernels[:m])


@constexpr_function
def area(kernels, m):
    return kernels[m] ** 2


@constexpr_function
def branch_taps(kernels, dilations):
    """Taps of every branch as (branch, dy, dx, index in the branch's kernel)."""
    out = []
    for m in range(len(kernels)):
        k, d = kernels[m], dilations[m]
        r = k // 2
        out.extend((m, d * (u - r), d * (v - r), u * k + v) for u in range(k) for v in range(k))
    return tuple(out)


@constexpr_function
def union_taps(taps):
    """Merge taps that read the same cell: (slab, dy, dx, ((branch, index), ...)), sorted."""
    merged = {}
    for slab, dy, dx, term in taps:
        merged.setdefault((slab, dy, dx), []).append(term)
    return tuple((*place, tuple(terms)) for place, terms in sorted(merged.items()))


@constexpr_function
def forward_taps(kernels, dilations, combine):
    """(output slab, dy, dx, terms); a slab is one branch's channels. `cumulative` is summed up at the store."""
    taps = branch_taps(kernels, dilations)
    return union_taps([(0 if combine == "add" else m, dy, dx, (m, i)) for m, dy, dx, i in taps])


@constexpr_function
def adjoint_taps(kernels, dilations, combine, stride, phase):
    """(gradient slab, dy, dx, terms) of one phase of the input gradient, offsets in rows of the output gradient."""
    out = []
    for m, dy, dx, i in branch_taps(kernels, dilations):
        y, x = phase[0] - dy, phase[1] - dx
        if y % stride[0] == 0 and x % stride[1] == 0:
            slabs = [m]
            if combine == "add":
                slabs = [0]
            elif combine == "cumulative":
                slabs = list(range(m, len(kernels)))
            out.extend((slab, y // stride[0], x // stride[1], (m, i)) for slab in slabs)
    return union_taps(out)


@constexpr_function
def slab_taps(kernels, dilations, combine, first, last):
    """The forward's taps of slabs first..last, slabs counted from first."""
    taps = forward_taps(kernels, dilations, combine)
    return tuple((tap[0] - first, *tap[1:]) for tap in taps if first <= tap[0] < last)


@constexpr_function
def slab_sources(combine, slab, count):
    """The output slabs whose gradients add up to the gradient of a slab."""
    return tuple(range(slab, count)) if combine == "cumulative" else (slab,)


@constexpr_function
def schedule(taps, reads_slab, stride_h, rows):
    """((input slab, row, column, ((accumulator, tap), ...)), ...) for `rows` output rows: each input element once."""
    loads = {}
    for i in range(len(taps)):
        slab, dy, dx, _ = taps[i]
        source, out = (slab, 0) if reads_slab else (0, slab)
        for t in range(rows):
            loads.setdefault((source, stride_h * t + dy, dx), []).append((out * rows + t, i))
    return tuple((*place, tuple(uses)) for place, uses in sorted(loads.items()))


@triton.jit
def locate(pid, C, HO, WO, TH: tl.constexpr, BC: tl.constexpr, BW: tl.constexpr):
    """First channel, row and column of a program, and its image; columns vary fastest."""
    wb = tl.cdiv(WO, BW)
    hb = tl.cdiv(HO, TH)
    cb = tl.cdiv(C, BC)
    rest = pid // wb
    image = rest // hb
    return (image % cb) * BC, (rest % hb) * TH, (pid % wb) * BW, tl.cast(image // cb, tl.int64)


@triton.jit
def tap_weight(w, c, c_ok, C, TERMS: tl.constexpr, KERNELS: tl.constexpr, ACC: tl.constexpr):
    """Weight of one tap for a block of channels: the sum over the branches that own the tap."""
    start = C * prefix(KERNELS, at(TERMS, 0, 0)) + c * area(KERNELS, at(TERMS, 0, 0)) + at(TERMS, 0, 1)
    value = tl.load(w + start, mask=c_ok, other=0.0).to(ACC)
    for i in tl.static_range(1, size(TERMS)):
        start = C * prefix(KERNELS, at(TERMS, i, 0)) + c * area(KERNELS, at(TERMS, i, 0)) + at(TERMS, i, 1)
        value += tl.load(w + start, mask=c_ok, other=0.0).to(ACC)
    return value


@triton.jit
def conv_taps(
    x, w, b, y, X0, Y0, W0, C, HI, WI, HO, WO, XN, XC, XH, XW, YN, YC, YH, YW,
    KERNELS: tl.constexpr, DILATIONS: tl.constexpr, COMBINE: tl.constexpr, STRIDE: tl.constexpr, PHASE: tl.constexpr,
    PACKED: tl.constexpr, BIAS: tl.constexpr, EXACT: tl.constexpr, ACC: tl.constexpr,
    TH: tl.constexpr, BC: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """y[c, o] = sum over taps of w[tap, c] * x[c, stride * o + offset]; with PHASE, the input gradient of that phase.

    w is the packed weight at W0, or with PACKED a float [taps, C] table (coalesced where vectors run along C).
    EXACT keeps cells outside the image out of the sum; otherwise they count as zeros, which an Inf turns into NaN.
    """
    BACK: tl.constexpr = PHASE is not None
    if BACK:
        TAPS: tl.constexpr = adjoint_taps(KERNELS, DILATIONS, COMBINE, STRIDE, PHASE)
        SH: tl.constexpr = 1
        SW: tl.constexpr = 1
    else:
        TAPS: tl.constexpr = forward_taps(KERNELS, DILATIONS, COMBINE)
        SH: tl.constexpr = at(STRIDE, 0)
        SW: tl.constexpr = at(STRIDE, 1)
    LOADS: tl.constexpr = schedule(TAPS, BACK, SH, TH)
    SLABS: tl.constexpr = 1 if BACK or COMBINE == "add" else size(KERNELS)

    c0, oh0, ow0, n = locate(tl.program_id(0), C, HO, WO, TH, BC, BW)
    c = c0 + tl.arange(0, BC)
    ow = ow0 + tl.arange(0, BW)
    c_ok = c < C
    x_row = tl.cast(XH, tl.int64)
    x_slab = tl.cast(XC, tl.int64) * C
    y_slab = tl.cast(YC, tl.int64) * C
    src = x + (X0 + n * XN + oh0 * SH * x_row) + (c.to(tl.int64) * XC)[:, None] + (ow.to(tl.int64) * SW * XW)[None, :]
    w += W0

    weights = ()
    if not PACKED:
        for i in tl.static_range(size(TAPS)):
            if BC == 1:
                weights += (tap_weight(w, c0, c0 < C, C, at(TAPS, i, 3), KERNELS, ACC),)
            else:
                weights += (tap_weight(w, c, c_ok, C, at(TAPS, i, 3), KERNELS, ACC)[:, None],)
    accs = (tl.zeros((BC, BW), ACC),) * (SLABS * TH)
    for e in tl.static_range(size(LOADS)):
        row = oh0 * SH + at(LOADS, e, 1)
        col = ow * SW + at(LOADS, e, 2)
        ok = ((row >= 0) & (row < HI)) & ((col >= 0) & (col < WI))[None, :] & c_ok[:, None]
        off = at(LOADS, e, 0) * x_slab + at(LOADS, e, 1) * x_row + at(LOADS, e, 2) * XW
        v = tl.load(src + off, mask=ok, other=0.0).to(ACC)
        for u in tl.static_range(size(at(LOADS, e, 3))):
            if PACKED:
                k = tl.load(w + at(LOADS, e, 3, u, 1) * C + c, mask=c_ok, other=0.0)[:, None]
            else:
                k = weights[at(LOADS, e, 3, u, 1)]
            term = v * k
            if EXACT:
                term = tl.where(ok, term, 0.0)
            accs = (
                accs[: at(LOADS, e, 3, u, 0)]
                + (accs[at(LOADS, e, 3, u, 0)] + term,)
                + accs[at(LOADS, e, 3, u, 0) + 1 :]
            )

    y_row = tl.cast(YH, tl.int64)
    dst = y + (Y0 + n * YN + oh0 * y_row) + (c.to(tl.int64) * YC)[:, None] + (ow.to(tl.int64) * YW)[None, :]
    for t in tl.static_range(TH):
        ok = ((oh0 + t) < HO) & (ow < WO)[None, :] & c_ok[:, None]
        for m in tl.static_range(SLABS):
            if m == 0 or COMBINE != "cumulative":
                total = accs[m * TH + t]
            else:
                total += accs[m * TH + t]
            out = total
            if BIAS:
                out += tl.load(b + m * C + c, mask=c_ok, other=0.0).to(ACC)[:, None]
            tl.store(dst + (m * y_slab + t * y_row), out.to(y.dtype.element_ty), mask=ok)


@triton.jit
def conv_table(
    x, w, b, y, taps, starts, X0, Y0, C, HI, WI, HO, WO, XN, XC, XH, XW, YN, YC, YH, YW,
    SLABS: tl.constexpr, BACK: tl.constexpr, CUMULATIVE: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    BIAS: tl.constexpr, EXACT: tl.constexpr, ACC: tl.constexpr, BC: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """`conv_taps` for any number of taps: a run-time loop over int32 (slab, dy, dx) rows, weights packed [taps, C]."""
    c0, oh, ow0, n = locate(tl.program_id(0), C, HO, WO, 1, BC, BW)
    c = c0 + tl.arange(0, BC)
    ow = ow0 + tl.arange(0, BW)
    c_ok = c < C
    ow_ok = ow < WO
    x_slab = tl.cast(XC, tl.int64) * C
    y_slab = tl.cast(YC, tl.int64) * C
    src = x + (X0 + n * XN) + (c.to(tl.int64) * XC)[:, None]
    dst = y + (Y0 + n * YN + oh * tl.cast(YH, tl.int64)) + (c.to(tl.int64) * YC)[:, None]
    dst += (ow.to(tl.int64) * YW)[None, :]
    acc = tl.zeros((BC, BW), ACC)
    for m in tl.static_range(SLABS):
        if not CUMULATIVE:
            acc = tl.zeros((BC, BW), ACC)
        for t in range(tl.load(starts + m), tl.load(starts + m + 1)):
            row = oh * SH + tl.load(taps + t * 3 + 1)
            col = ow * SW + tl.load(taps + t * 3 + 2)
            ok = ((row >= 0) & (row < HI)) & ((col >= 0) & (col < WI) & ow_ok)[None, :] & c_ok[:, None]
            off = row * tl.cast(XH, tl.int64)
            if BACK:
                off += tl.load(taps + t * 3) * x_slab
            v = tl.load(src + off + (col.to(tl.int64) * XW)[None, :], mask=ok, other=0.0).to(ACC)
            k = tl.load(w + tl.cast(t, tl.int64) * C + c, mask=c_ok, other=0.0)[:, None]
            term = v * k
            if EXACT:
                term = tl.where(ok, term, 0.0)
            acc += term
        out = acc
        if BIAS:
            out += tl.load(b + m * C + c, mask=c_ok, other=0.0).to(ACC)[:, None]
        tl.store(dst + m * y_slab, out.to(y.dtype.element_ty), mask=ow_ok[None, :] & c_ok[:, None])


@triton.jit
def pack_weights(w, out, terms, starts, W0, C, BC: tl.constexpr):
    """out[tap, c] = the sum of the branches' weights at that tap, in float; terms are rows (prefix, area, index)."""
    cb = tl.cdiv(C, BC)
    tap = tl.program_id(0) // cb
    c = (tl.program_id(0) % cb) * BC + tl.arange(0, BC)
    ok = c < C
    total = tl.zeros((BC,), out.dtype.element_ty)
    for i in range(tl.load(starts + tap), tl.load(starts + tap + 1)):
        start = W0 + tl.load(terms + i * 3).to(tl.int64) * C + tl.load(terms + i * 3 + 2)
        total += tl.load(w + start + c.to(tl.int64) * tl.load(terms + i * 3 + 1), mask=ok, other=0.0).to(
            out.dtype.element_ty
        )
    tl.store(out + tl.cast(tap, tl.int64) * C + c, total, mask=ok)

# ruff: noqa: RUF005 (Triton has no starred tuples)
"""Tensor-core Triton kernels of `multi_dwconv2d` for 16-bit NCHW.

Along an image row a depthwise convolution is a product with a banded Toeplitz matrix, T[input column, output column] =
w[input column - output column]. `build_matrices` writes those of every kernel row and channel; a program of `conv_rows`
owns one channel, loads its matrices once, and for each tile of rows (of several images where they are small) adds one
`tl.dot` a kernel row. Columns left and right of a tile enter through a second, narrow matrix, the halo. Products of
16-bit numbers are exact and summed in float32; a weight merged from several branches is split into a leading and a
trailing 16-bit part, so that it is not rounded.

The zeros of the matrix meet every pixel of the window: an Inf or NaN spreads there.
"""

import triton
import triton.language as tl

from lightkernels.ops.multi_dwconv2d.triton_kernels import area, at, constexpr_function, prefix, size, slab_sources


@constexpr_function
def kernel_rows(kernels, dilations, combine, stride, phase):
    """((input slab, dy, ((output slab, ((branch, kernel row), ...)), ...)), ...): what reads one shifted tile."""
    found = {}
    for m in range(len(kernels)):
        for u in range(kernels[m]):
            dy = dilations[m] * (u - kernels[m] // 2)
            if phase is None:
                out = 0 if combine == "add" else m
                found.setdefault((0, dy), {}).setdefault(out, []).append((m, u))
            elif (phase[0] - dy) % stride[0] == 0:
                slabs = [m]
                if combine == "add":
                    slabs = [0]
                elif combine == "cumulative":
                    slabs = list(range(m, len(kernels)))
                for slab in slabs:
                    found.setdefault((slab, (phase[0] - dy) // stride[0]), {}).setdefault(0, []).append((m, u))
    rows = []
    for key in sorted(found):
        outs = found[key]
        rows.append((*key, tuple((out, tuple(outs[out])) for out in sorted(outs))))
    return tuple(rows)


@constexpr_function
def slot(rows, e, o):
    """Number of the (leading) matrix of row e's o-th use; (row count, 0) gives their count."""
    uses = [use for row in rows[:e] for use in row[2]] + (list(rows[e][2][:o]) if e < len(rows) else [])
    return sum(2 if len(use[1]) > 1 else 1 for use in uses)


@constexpr_function
def column_reach(kernels, dilations):
    return max(dilations[m] * (kernels[m] // 2) for m in range(len(kernels)))


@constexpr_function
def power_of_two(n):
    return 1 << (n - 1).bit_length()


@triton.jit
def toeplitz(w, c, C, dx, TERMS: tl.constexpr, KERNELS: tl.constexpr, DILATIONS: tl.constexpr):
    """Float matrix of one kernel row: at each element the weight of column offset dx, summed over the branches."""
    total = tl.zeros(dx.shape, tl.float32)
    for i in tl.static_range(size(TERMS)):
        K = at(KERNELS, at(TERMS, i, 0))
        D = at(DILATIONS, at(TERMS, i, 0))
        R = K // 2
        row = C * prefix(KERNELS, at(TERMS, i, 0)) + c * area(KERNELS, at(TERMS, i, 0)) + at(TERMS, i, 1) * K
        ok = (dx >= -R * D) & (dx <= R * D) & (dx % D == 0)
        total += tl.load(w + row + dx // D + R, mask=ok, other=0.0).to(tl.float32)
    return total


@triton.jit
def build_matrices(
    w, out, W0, C, KERNELS: tl.constexpr, DILATIONS: tl.constexpr, COMBINE: tl.constexpr, STRIDE: tl.constexpr,
    PHASE: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, HALO: tl.constexpr,
):  # fmt: skip
    """out[c, matrix, input column, output column], the HALO columns after the BK; one kernel row of c a program.

    A row that sums branches takes two matrices: its 16-bit leading part and what that leaves.
    """
    ROWS: tl.constexpr = kernel_rows(KERNELS, DILATIONS, COMBINE, STRIDE, PHASE)
    COUNT: tl.constexpr = slot(ROWS, size(ROWS), 0)
    SW: tl.constexpr = BK // BN
    c = tl.program_id(0) // size(ROWS)
    want = tl.program_id(0) % size(ROWS)
    w += W0
    out += tl.cast(c, tl.int64) * (COUNT * (BK + HALO) * BN)
    j = tl.arange(0, BN)
    for part in tl.static_range(2 if HALO > 0 else 1):
        if part == 0:
            k = tl.arange(0, BK)
            col = k
        else:
            h = tl.arange(0, HALO)
            k = BK + h
            col = h - HALO // 2 + (h // (HALO // 2)) * BK
        dx = col[:, None] - SW * j[None, :]
        if PHASE is not None:
            dx = at(PHASE, 1) - at(STRIDE, 1) * dx
        at_out = out + k[:, None] * BN + j[None, :]
        for e in tl.static_range(size(ROWS)):
            if want == e:
                for o in tl.static_range(size(at(ROWS, e, 2))):
                    t = toeplitz(w, c, C, dx, at(ROWS, e, 2, o, 1), KERNELS, DILATIONS)
                    lead = t.to(out.dtype.element_ty)
                    tl.store(at_out + slot(ROWS, e, o) * ((BK + HALO) * BN), lead)
                    if size(at(ROWS, e, 2, o, 1)) > 1:
                        trail = (t - lead.to(tl.float32)).to(out.dtype.element_ty)
                        tl.store(at_out + (slot(ROWS, e, o) + 1) * ((BK + HALO) * BN), trail)


@triton.jit(do_not_specialize=["N", "ITEMS", "PER"])
def conv_rows(
    x, matrices, b, y, X0, Y0, N, C, XN, YN, ITEMS, PER,
    HI: tl.constexpr, WI: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr,
    XC: tl.constexpr, XH: tl.constexpr, YC: tl.constexpr, YH: tl.constexpr, YW: tl.constexpr,
    KERNELS: tl.constexpr, DILATIONS: tl.constexpr, COMBINE: tl.constexpr, STRIDE: tl.constexpr, PHASE: tl.constexpr,
    BIAS: tl.constexpr, BM: tl.constexpr, HP: tl.constexpr, BN: tl.constexpr, HALO: tl.constexpr,
):  # fmt: skip
    """The sums of `conv_taps`, one channel a program, tiles of BM rows (HP an image) by BN output columns.

    Columns of x lie side by side (stride 1). HALO is 0 if one tile spans the image, else at least twice the reach.
    """
    BACK: tl.constexpr = PHASE is not None
    ROWS: tl.constexpr = kernel_rows(KERNELS, DILATIONS, COMBINE, STRIDE, PHASE)
    SH: tl.constexpr = 1 if BACK else at(STRIDE, 0)
    SW: tl.constexpr = 1 if BACK else at(STRIDE, 1)
    SLABS: tl.constexpr = 1 if BACK or COMBINE == "add" else size(KERNELS)
    BK: tl.constexpr = BN * SW
    MATRIX: tl.constexpr = (BK + HALO) * BN
    IMAGES: tl.constexpr = BM // HP
    WB: tl.constexpr = (WO + BN - 1) // BN
    HB: tl.constexpr = (HO + HP - 1) // HP
    c = tl.program_id(0) % C
    p = tl.program_id(0) // C

    j = tl.arange(0, BN)
    k = tl.arange(0, BK)
    t_at = matrices + tl.cast(c, tl.int64) * (slot(ROWS, size(ROWS), 0) * MATRIX) + k[:, None] * BN + j[None, :]
    if HALO > 0:
        h = tl.arange(0, HALO)
        hk = h - HALO // 2 + (h // (HALO // 2)) * BK
        h_at = matrices + tl.cast(c, tl.int64) * (slot(ROWS, size(ROWS), 0) * MATRIX)
        h_at += (BK + h)[:, None] * BN + j[None, :]
    main = ()
    halo = ()
    for i in tl.static_range(slot(ROWS, size(ROWS), 0)):
        main += (tl.load(t_at + i * MATRIX),)
        if HALO > 0:
            halo += (tl.load(h_at + i * MATRIX),)

    m = tl.arange(0, BM)
    image = m // HP
    r = m % HP
    x_c = x + (X0 + tl.cast(c, tl.int64) * XC) + (image.to(tl.int64) * XN + r * SH * XH)[:, None]
    y_c = y + (Y0 + tl.cast(c, tl.int64) * YC) + (image.to(tl.int64) * YN + r * YH)[:, None] + (j * YW)[None, :]
    x_slab = tl.cast(C, tl.int64) * XC
    y_slab = tl.cast(C, tl.int64) * YC
    for item in range(p * PER, tl.minimum((p + 1) * PER, ITEMS)):
        ow0 = (item % WB) * BN
        oh0 = (item // WB % HB) * HP
        n0 = item // (WB * HB) * IMAGES
        n_ok = n0 + image < N
        src = x_c + (tl.cast(n0, tl.int64) * XN + oh0 * SH * XH + ow0 * SW)
        accs = (tl.zeros((BM, BN), tl.float32),) * SLABS
        for e in tl.static_range(size(ROWS)):
            row = (oh0 + r) * SH + at(ROWS, e, 1)
            row_ok = ((row >= 0) & (row < HI) & n_ok)[:, None]
            off = at(ROWS, e, 0) * x_slab + at(ROWS, e, 1) * XH
            a = tl.load(src + off + k[None, :], mask=row_ok & (ow0 * SW + k < WI)[None, :], other=0.0)
            if HALO > 0:
                col = ow0 * SW + hk
                a_halo = tl.load(src + off + hk[None, :], mask=row_ok & ((col >= 0) & (col < WI))[None, :], other=0.0)
            for o in tl.static_range(size(at(ROWS, e, 2))):
                acc = accs[at(ROWS, e, 2, o, 0)]
                for i in tl.static_range(slot(ROWS, e, o), slot(ROWS, e, o + 1)):
                    acc = tl.dot(a, main[i], acc)
                    if HALO > 0:
                        acc = tl.dot(a_halo, halo[i], acc)
                accs = accs[: at(ROWS, e, 2, o, 0)] + (acc,) + accs[at(ROWS, e, 2, o, 0) + 1 :]

        dst = y_c + (tl.cast(n0, tl.int64) * YN + oh0 * YH + ow0 * YW)
        ok = (n_ok & (oh0 + r < HO))[:, None] & (ow0 + j < WO)[None, :]
        for s in tl.static_range(SLABS):
            if s == 0 or COMBINE != "cumulative":
                total = accs[s]
            else:
                total += accs[s]
            out = total
            if BIAS:
                out += tl.load(b + s * C + c).to(tl.float32)
            tl.store(dst + s * y_slab, out.to(y.dtype.element_ty), mask=ok)


@constexpr_function
def grad_rows_of(kernels, dilations, combine, first, last):
    """((slab, dy, ((branch, kernel row), ...)), ...) of output slabs first..last: one accumulated product each."""
    found = {}
    for m in range(len(kernels)):
        slab = 0 if combine == "add" else m
        for u in range(kernels[m]):
            if first <= slab < last:
                found.setdefault((slab, dilations[m] * (u - kernels[m] // 2)), []).append((m, u))
    return tuple((*key, tuple(found[key])) for key in sorted(found))


@triton.jit(do_not_specialize=["N", "ITEMS", "PER", "TOTAL"])
def grad_rows(
    g, x, part, G0, X0, W0, N, C, GN, XN, ITEMS, PER, TOTAL,
    HI: tl.constexpr, WI: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr,
    GC: tl.constexpr, GH: tl.constexpr, XC: tl.constexpr, XH: tl.constexpr,
    KERNELS: tl.constexpr, DILATIONS: tl.constexpr, COMBINE: tl.constexpr, STRIDE: tl.constexpr,
    FIRST: tl.constexpr, LAST: tl.constexpr, BM: tl.constexpr, HP: tl.constexpr, BN: tl.constexpr, HALO: tl.constexpr,
):  # fmt: skip
    """First stage of the weight gradient: for each kernel row P[output column, input column] = sum over rows of g * x.

    A tap's gradient is the sum of one diagonal of P, taken once at the end.
    """
    ROWS: tl.constexpr = grad_rows_of(KERNELS, DILATIONS, COMBINE, FIRST, LAST)
    REACH: tl.constexpr = column_reach(KERNELS, DILATIONS)
    TAPS: tl.constexpr = power_of_two(2 * REACH + 1)
    SH: tl.constexpr = at(STRIDE, 0)
    SW: tl.constexpr = at(STRIDE, 1)
    BK: tl.constexpr = BN * SW
    IMAGES: tl.constexpr = BM // HP
    WB: tl.constexpr = (WO + BN - 1) // BN
    HB: tl.constexpr = (HO + HP - 1) // HP
    c = tl.program_id(0) % C
    p = tl.program_id(0) // C
    j = tl.arange(0, BN)
    k = tl.arange(0, BK)
    if HALO > 0:
        h = tl.arange(0, HALO)
        hk = h - HALO // 2 + (h // (HALO // 2)) * BK
    m = tl.arange(0, BM)
    image = m // HP
    r = m % HP
    x_c = x + (X0 + tl.cast(c, tl.int64) * XC) + (image.to(tl.int64) * XN + r * SH * XH)[:, None]
    g_c = g + (G0 + tl.cast(c, tl.int64) * GC) + (image.to(tl.int64) * GN + r * GH)[:, None] + j[None, :]
    g_slab = tl.cast(C, tl.int64) * GC
    sums = (tl.zeros((BN, BK), tl.float32),) * size(ROWS)
    halos = ()
    if HALO > 0:
        halos = (tl.zeros((BN, HALO), tl.float32),) * size(ROWS)
    for item in range(p * PER, tl.minimum((p + 1) * PER, ITEMS)):
        ow0 = (item % WB) * BN
        oh0 = (item // WB % HB) * HP
        n0 = item // (WB * HB) * IMAGES
        n_ok = n0 + image < N
        src = x_c + (tl.cast(n0, tl.int64) * XN + oh0 * SH * XH + ow0 * SW)
        g_at = g_c + (tl.cast(n0, tl.int64) * GN + oh0 * GH + ow0)
        g_ok = (n_ok & (oh0 + r < HO))[:, None] & (ow0 + j < WO)[None, :]
        for e in tl.static_range(size(ROWS)):
            row = (oh0 + r) * SH + at(ROWS, e, 1)
            row_ok = ((row >= 0) & (row < HI) & n_ok)[:, None]
            off = at(ROWS, e, 1) * XH
            a = tl.load(src + off + k[None, :], mask=row_ok & (ow0 * SW + k < WI)[None, :], other=0.0)
            if HALO > 0:
                col = ow0 * SW + hk
                a_halo = tl.load(src + off + hk[None, :], mask=row_ok & ((col >= 0) & (col < WI))[None, :], other=0.0)
            for q in tl.static_range(size(slab_sources(COMBINE, at(ROWS, e, 0), size(KERNELS)))):
                grad = tl.load(g_at + (at(ROWS, e, 0) + q) * g_slab, mask=g_ok, other=0.0)
                sums = sums[:e] + (tl.dot(tl.trans(grad), a, sums[e]),) + sums[e + 1 :]
                if HALO > 0:
                    halos = halos[:e] + (tl.dot(tl.trans(grad), a_halo, halos[e]),) + halos[e + 1 :]

    # Column t of the gathered P is the diagonal dx = t - REACH.
    t = tl.arange(0, TAPS)
    col = SW * j[:, None] + (t - REACH)[None, :]
    inside = (col >= 0) & (col < BK)
    index = tl.where(inside, col, 0)
    if HALO > 0:
        col += HALO // 2
        h_col = tl.where(col < HALO // 2, col, col - BK)
        h_inside = (col >= 0) & (h_col < HALO) & ((col < HALO // 2) | (h_col >= HALO // 2))
        h_index = tl.where(h_inside, h_col, 0)
    dst = part + (tl.cast(p, tl.int64) * TOTAL + W0)
    for e in tl.static_range(size(ROWS)):
        total = tl.sum(tl.where(inside, tl.gather(sums[e], index, 1), 0.0), axis=0)
        if HALO > 0:
            total += tl.sum(tl.where(h_inside, tl.gather(halos[e], h_index, 1), 0.0), axis=0)
        for i in tl.static_range(size(at(ROWS, e, 2))):
            K = at(KERNELS, at(ROWS, e, 2, i, 0))
            D = at(DILATIONS, at(ROWS, e, 2, i, 0))
            R = K // 2
            row = C * prefix(KERNELS, at(ROWS, e, 2, i, 0)) + c * area(KERNELS, at(ROWS, e, 2, i, 0))
            v = t - REACH + R * D
            ok = (v >= 0) & (v <= 2 * R * D) & (v % D == 0)
            tl.store(dst + (row + at(ROWS, e, 2, i, 1) * K) + v // D, total, mask=ok)

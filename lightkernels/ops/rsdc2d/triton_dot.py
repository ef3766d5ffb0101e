# ruff: noqa: RUF005 (Triton has no starred tuples)
"""Tensor-core Triton kernels of `rsdc2d`, for sets of taps that the filters of a group share.

An implicit matrix product: pixels are the rows, filters the columns, and the sum runs over taps and, within one, over
channels. A tap is an offset read from memory, so random cells cost what a square costs. The input gradient is the same
kernel, with the weight transposed and the offsets negated; where there is a stride, every phase of the input has its
own list of taps (`phase_table`). Groups of few channels take several taps in one step (FLAT).
"""

import triton
import triton.language as tl

from lightkernels.ops.rsdc2d.triton_pack import source_tap


@triton.jit
def product(a, b, acc, MODE: tl.constexpr):
    """acc + a @ b. MODE: the precision of float32, or "wide", operands as float32 (the interpreter has no bfloat16)."""
    if MODE == "wide":
        acc = tl.dot(a.to(tl.float32), b.to(tl.float32), acc, out_dtype=acc.dtype)
    else:
        acc = tl.dot(a, b, acc, input_precision=MODE, out_dtype=acc.dtype)
    return acc


@triton.jit(do_not_specialize=["M", "COUNT"])
def conv_dot(
    x, w, b, y, taps, counts, M, COUNT,
    HI: tl.constexpr, WI: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr,
    XN: tl.constexpr, XC: tl.constexpr, XH: tl.constexpr, XW: tl.constexpr,
    YN: tl.constexpr, YC: tl.constexpr, YH: tl.constexpr, YW: tl.constexpr,
    GROUPS: tl.constexpr, CIN: tl.constexpr, COUT: tl.constexpr, SETS: tl.constexpr, T: tl.constexpr,
    K: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr, PH: tl.constexpr,
    PW: tl.constexpr, VH: tl.constexpr, VW: tl.constexpr, BACK: tl.constexpr, TABLE: tl.constexpr,
    BIAS: tl.constexpr, FLAT: tl.constexpr, MODE: tl.constexpr, ACC: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y[pixel, column] = sum over taps t and k of x[stride * pixel + offset(t), k] * w[t, column, k].

    w is packed. With BACK x is the output gradient; its VH * VW phases are the input's pixels modulo the stride, of
    which M counts the largest. SH and SW step through x, VH and VW through y; one of the pairs is (1, 1).
    """
    NB: tl.constexpr = (COUT + BN - 1) // BN
    HP: tl.constexpr = (HO + VH - 1) // VH
    WP: tl.constexpr = (WO + VW - 1) // VW
    pid = tl.program_id(0)
    j = pid % NB * BN + tl.arange(0, BN)
    group = pid // NB % GROUPS
    phase = pid // (NB * GROUPS) % (VH * VW)
    m = pid // (NB * GROUPS * VH * VW) * BM + tl.arange(0, BM)
    n = (m // (HP * WP)).to(tl.int64)
    row = m // WP % HP
    col = m % WP

    start = phase * SETS
    if SETS > 1:
        start += group
    if TABLE:
        count = tl.load(counts + start)
        taps += start * (T * 3)
    else:
        count = COUNT  # which is T, but unrolled to the end the loop would spill
        taps += start * T
    src = x + n * XN + (row * SH).to(tl.int64) * XH + (col * SW).to(tl.int64) * XW + (group * CIN).to(tl.int64) * XC
    wgt = w + (group * COUT + j) * CIN
    step_k = tl.arange(0, BK)
    acc = tl.zeros((BM, BN), ACC)
    if FLAT:
        for step in range(0, tl.cdiv(count * CIN, BK)):
            k = step * BK + step_k
            dy, dx, t, live = source_tap(taps, tl.minimum(k // CIN, T - 1), K, DH, DW, PH, PW, BACK, TABLE)
            live = live & (k < count * CIN)
            r = (row * SH)[:, None] + dy[None, :]
            c = (col * SW)[:, None] + dx[None, :]
            ok = ((m < M)[:, None] & live[None, :]) & ((r >= 0) & (r < HI) & (c >= 0) & (c < WI))
            off = dy.to(tl.int64) * XH + dx.to(tl.int64) * XW + (k % CIN).to(tl.int64) * XC
            a = tl.load(src[:, None] + off[None, :], mask=ok, other=0.0)
            at = t * (GROUPS * COUT * CIN) + k % CIN
            v = tl.load(wgt[None, :] + at[:, None], mask=live[:, None] & (j < COUT)[None, :], other=0.0)
            acc = product(a, v, acc, MODE)
    else:
        KB: tl.constexpr = (CIN + BK - 1) // BK
        for step in range(0, count * KB):
            dy, dx, t, live = source_tap(taps, step // KB, K, DH, DW, PH, PW, BACK, TABLE)
            k = step % KB * BK + step_k
            r = row * SH + dy
            c = col * SW + dx
            ok = (m < M) & live & (r >= 0) & (r < HI) & (c >= 0) & (c < WI)
            at_x = (src + (dy.to(tl.int64) * XH + dx.to(tl.int64) * XW))[:, None] + (k.to(tl.int64) * XC)[None, :]
            at_w = wgt[None, :] + (t * (GROUPS * COUT * CIN) + k)[:, None]
            if CIN % BK == 0:
                a = tl.load(at_x, mask=ok[:, None], other=0.0)
            else:
                a = tl.load(at_x, mask=ok[:, None] & (k < CIN)[None, :], other=0.0)
            if CIN % BK == 0 and COUT % BN == 0:
                v = tl.load(at_w)
            else:
                v = tl.load(at_w, mask=(k < CIN)[:, None] & (j < COUT)[None, :], other=0.0)
            acc = product(a, v, acc, MODE)

    if BIAS:
        acc += tl.load(b + group * COUT + j, mask=j < COUT, other=0.0).to(ACC)[None, :]
    out_row = row * VH + phase // VW
    out_col = col * VW + phase % VW
    ok = (m < M) & (out_row < HO) & (out_col < WO)
    dst = y + n * YN + out_row.to(tl.int64) * YH + out_col.to(tl.int64) * YW
    at_y = dst[:, None] + ((group * COUT + j).to(tl.int64) * YC)[None, :]
    tl.store(at_y, acc.to(y.dtype.element_ty), mask=ok[:, None] & (j < COUT)[None, :])


@triton.jit(do_not_specialize=["M", "ITEMS", "PER"])
def grad_dot(
    g, x, part, taps, M, ITEMS, PER,
    HI: tl.constexpr, WI: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr,
    GN: tl.constexpr, GC: tl.constexpr, GH: tl.constexpr, GW: tl.constexpr,
    XN: tl.constexpr, XC: tl.constexpr, XH: tl.constexpr, XW: tl.constexpr,
    GROUPS: tl.constexpr, CIN: tl.constexpr, COUT: tl.constexpr, SETS: tl.constexpr, T: tl.constexpr,
    K: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr, PH: tl.constexpr,
    PW: tl.constexpr, MODE: tl.constexpr, ACC: tl.constexpr,
    BM: tl.constexpr, BO: tl.constexpr, BC: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """First stage of the weight gradient: part[p, t, o, c] = sum over a run of pixels of g[pixel, o] * x[pixel + t, c].

    A program reads a block of g once for TAPS taps.
    """
    OB: tl.constexpr = (COUT + BO - 1) // BO
    CB: tl.constexpr = (CIN + BC - 1) // BC
    TB: tl.constexpr = (T + TAPS - 1) // TAPS
    pid = tl.program_id(0)
    o = pid % OB * BO + tl.arange(0, BO)
    c = pid // OB % CB * BC + tl.arange(0, BC)
    first = pid // (OB * CB) % TB * TAPS
    group = pid // (OB * CB * TB) % GROUPS
    p = pid // (OB * CB * TB * GROUPS)
    if SETS > 1:
        taps += group * T
    dys = ()
    dxs = ()
    lives = ()
    for i in tl.static_range(TAPS):
        dy, dx, _, live = source_tap(taps, tl.minimum(first + i, T - 1), K, DH, DW, PH, PW, False, False)
        dys += (dy,)
        dxs += (dx,)
        lives += (live,)
    g_o = g + ((group * COUT + o).to(tl.int64) * GC)[None, :]
    x_c = x + ((group * CIN + c).to(tl.int64) * XC)[None, :]

    accs = (tl.zeros((BO, BC), ACC),) * TAPS
    for item in range(p * PER, tl.minimum((p + 1) * PER, ITEMS)):
        m = item * BM + tl.arange(0, BM)
        n = (m // (HO * WO)).to(tl.int64)
        row = m // WO % HO
        col = m % WO
        g_at = n * GN + row.to(tl.int64) * GH + col.to(tl.int64) * GW
        x_at = n * XN + (row * SH).to(tl.int64) * XH + (col * SW).to(tl.int64) * XW
        grad = tl.trans(tl.load(g_o + g_at[:, None], mask=(m < M)[:, None] & (o < COUT)[None, :], other=0.0))
        for i in tl.static_range(TAPS):
            r = row * SH + dys[i]
            s = col * SW + dxs[i]
            ok = (m < M) & lives[i] & (r >= 0) & (r < HI) & (s >= 0) & (s < WI)
            at = x_at + (dys[i].to(tl.int64) * XH + dxs[i].to(tl.int64) * XW)
            v = tl.load(x_c + at[:, None], mask=ok[:, None] & (c < CIN)[None, :], other=0.0)
            accs = accs[:i] + (product(grad, v, accs[i], MODE),) + accs[i + 1 :]

    dst = part + (tl.cast(p, tl.int64) * T + first) * (GROUPS * COUT * CIN)
    dst += ((group * COUT + o) * CIN)[:, None] + c[None, :]
    for i in tl.static_range(TAPS):
        ok = (o < COUT)[:, None] & (c < CIN)[None, :] & (first + i < T)
        tl.store(dst + i * (GROUPS * COUT * CIN), accs[i], mask=ok)

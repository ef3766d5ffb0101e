# ruff: noqa: RUF005 (Triton has no starred tuples)
"""Element-wise Triton kernels of `rsdc2d`: depthwise and tiny groups, any sets of taps, both layouts, every dtype.

A lane is one channel of one pixel of the result, and gathers the taps of its own set; no zero is multiplied that is not
in the sum. Lanes run along channels where channels lie side by side (LAST), else along pixels.
"""

import triton
import triton.language as tl

from lightkernels._core.triton_math import decoded


@triton.jit
def lanes(PIXELS: tl.constexpr, BN: tl.constexpr, LAST: tl.constexpr):
    """Pixel and channel of each lane of a tile."""
    e = tl.arange(0, PIXELS * BN)
    if LAST:
        pixel = e // BN
        channel = e % BN
    else:
        pixel = e % PIXELS
        channel = e // PIXELS
    return pixel, channel


@triton.jit(do_not_specialize=["M"])
def conv_direct(
    x, w, b, y, taps, M,
    HI: tl.constexpr, WI: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr,
    XN: tl.constexpr, XC: tl.constexpr, XH: tl.constexpr, XW: tl.constexpr,
    YN: tl.constexpr, YC: tl.constexpr, YH: tl.constexpr, YW: tl.constexpr,
    GROUPS: tl.constexpr, CIN: tl.constexpr, COUT: tl.constexpr, EACH: tl.constexpr, T: tl.constexpr,
    K: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr, PH: tl.constexpr,
    PW: tl.constexpr, BACK: tl.constexpr, BIAS: tl.constexpr, EXACT: tl.constexpr, ACC: tl.constexpr,
    LAST: tl.constexpr, ROWS: tl.constexpr, PIXELS: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """y from x, or with BACK the input gradient y from the output gradient x; w as it is, EACH filters a set of taps.

    CIN channels of x in a group, COUT of y. A lane has ROWS pixels, PIXELS apart, that share offsets and weights.
    """
    NB: tl.constexpr = (GROUPS * COUT + BN - 1) // BN
    pixel, channel = lanes(PIXELS, BN, LAST)
    column = tl.program_id(0) % NB * BN + channel
    column_ok = column < GROUPS * COUT
    column = tl.where(column_ok, column, 0)
    group = column // COUT
    m = (tl.program_id(0) // NB * ROWS + tl.arange(0, ROWS))[:, None] * PIXELS + pixel[None, :]
    ok = (m < M) & column_ok[None, :]
    n = (m // (HO * WO)).to(tl.int64)
    row = m // WO % HO
    col = m % WO
    src = x + n * XN + ((group * CIN).to(tl.int64) * XC)[None, :]
    acc = tl.zeros((ROWS, PIXELS * BN), ACC)
    for t in range(0, T):
        for q in range(0, CIN):
            of = (group * CIN + q if BACK else column) // EACH
            dy, dx, live = decoded(tl.load(taps + of * T + t), K, DH, DW, PH, PW)
            if BACK:
                r = row - dy[None, :]
                c = col - dx[None, :]
                fits = (r >= 0) & (c >= 0) & (r % SH == 0) & (c % SW == 0)
                r = r // SH
                c = c // SW
                weight = tl.load(w + ((group * CIN + q) * COUT + column % COUT) * T + t)
            else:
                r = row * SH + dy[None, :]
                c = col * SW + dx[None, :]
                fits = (r >= 0) & (c >= 0)
                weight = tl.load(w + (column * CIN + q) * T + t)
            inside = ok & fits & live[None, :] & (r < HI) & (c < WI)
            at = src + r.to(tl.int64) * XH + c.to(tl.int64) * XW + tl.cast(q, tl.int64) * XC
            term = tl.load(at, mask=inside, other=0.0).to(ACC) * weight.to(ACC)[None, :]
            if EXACT:
                term = tl.where(inside, term, 0.0)
            acc += term
    if BIAS:
        acc += tl.load(b + column).to(ACC)[None, :]
    dst = y + n * YN + row.to(tl.int64) * YH + col.to(tl.int64) * YW + (column.to(tl.int64) * YC)[None, :]
    tl.store(dst, acc.to(y.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=["M", "ITEMS", "PER"])
def grad_direct(
    g, x, part, taps, M, ITEMS, PER,
    HI: tl.constexpr, WI: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr,
    GN: tl.constexpr, GC: tl.constexpr, GH: tl.constexpr, GW: tl.constexpr,
    XN: tl.constexpr, XC: tl.constexpr, XH: tl.constexpr, XW: tl.constexpr,
    GROUPS: tl.constexpr, CIN: tl.constexpr, COUT: tl.constexpr, EACH: tl.constexpr, T: tl.constexpr,
    K: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr, PH: tl.constexpr,
    PW: tl.constexpr, EXACT: tl.constexpr, ACC: tl.constexpr, LAST: tl.constexpr,
    PIXELS: tl.constexpr, BN: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """First stage of the weight gradient: part[p, t, o, q] for a block of filters o, one input channel q, TAPS taps."""
    NB: tl.constexpr = (GROUPS * COUT + BN - 1) // BN
    TB: tl.constexpr = (T + TAPS - 1) // TAPS
    pid = tl.program_id(0)
    q = pid // NB % CIN
    first = pid // (NB * CIN) % TB * TAPS
    p = pid // (NB * CIN * TB)
    pixel, channel = lanes(PIXELS, BN, LAST)
    o = pid % NB * BN + channel
    o_ok = o < GROUPS * COUT
    o = tl.where(o_ok, o, 0)
    dys = ()
    dxs = ()
    lives = ()
    for i in tl.static_range(TAPS):
        cell = tl.load(taps + o // EACH * T + tl.minimum(first + i, T - 1))
        dy, dx, live = decoded(cell, K, DH, DW, PH, PW)
        dys += (dy,)
        dxs += (dx,)
        lives += (live,)
    g_o = g + o.to(tl.int64) * GC
    x_q = x + (o // COUT * CIN + q).to(tl.int64) * XC

    accs = (tl.zeros((PIXELS * BN,), ACC),) * TAPS
    for item in range(p * PER, tl.minimum((p + 1) * PER, ITEMS)):
        m = item * PIXELS + pixel
        ok = (m < M) & o_ok
        n = (m // (HO * WO)).to(tl.int64)
        row = m // WO % HO
        col = m % WO
        grad = tl.load(g_o + n * GN + row.to(tl.int64) * GH + col.to(tl.int64) * GW, mask=ok, other=0.0).to(ACC)
        for i in tl.static_range(TAPS):
            r = row * SH + dys[i]
            c = col * SW + dxs[i]
            inside = ok & lives[i] & (r >= 0) & (r < HI) & (c >= 0) & (c < WI)
            at = x_q + n * XN + r.to(tl.int64) * XH + c.to(tl.int64) * XW
            term = tl.load(at, mask=inside, other=0.0).to(ACC) * grad
            if EXACT:
                term = tl.where(inside, term, 0.0)
            accs = accs[:i] + (accs[i] + term,) + accs[i + 1 :]

    own = pid % NB * BN + tl.arange(0, BN)
    dst = part + (tl.cast(p, tl.int64) * T + first) * (GROUPS * COUT * CIN) + own * CIN + q
    for i in tl.static_range(TAPS):
        if LAST:
            total = tl.sum(tl.reshape(accs[i], (PIXELS, BN)), axis=0)
        else:
            total = tl.sum(tl.reshape(accs[i], (BN, PIXELS)), axis=1)
        tl.store(dst + i * (GROUPS * COUT * CIN), total, mask=(own < GROUPS * COUT) & (first + i < T))

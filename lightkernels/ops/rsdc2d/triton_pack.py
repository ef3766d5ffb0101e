"""Around the Triton kernels of `rsdc2d`: where a tap reads, weights and taps in the kernels' order, sums of parts."""

import triton
import triton.language as tl

from lightkernels._core.triton_math import decoded


@triton.jit
def source_tap(
    taps, i, K: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    BACK: tl.constexpr, TABLE: tl.constexpr,
):  # fmt: skip
    """(row offset, column offset, its place in the weight, whether it is in the window) of a set's i-th taps.

    `taps` is a set of cells, whose offsets BACK negates, or with TABLE a row of `phase_table`.
    """
    if TABLE:
        dy = tl.load(taps + i * 3)
        dx = tl.load(taps + i * 3 + 1)
        t = tl.load(taps + i * 3 + 2)
        live = t >= 0
    else:
        dy, dx, live = decoded(tl.load(taps + i), K, DH, DW, PH, PW)
        if BACK:
            dy = -dy
            dx = -dx
        t = i
    return dy, dx, t, live


@triton.jit
def pack(
    w, out, TOTAL, CIN: tl.constexpr, COUT: tl.constexpr, GROUPS: tl.constexpr, T: tl.constexpr, BACK: tl.constexpr,
    BE: tl.constexpr,
):  # fmt: skip
    """The weight [Co, C / groups, T] as out[tap, column, k], k side by side.

    CIN and COUT are the channels of one group of the product: a column is a filter and k a channel, or with BACK a
    column is a channel and k a filter.
    """
    e = tl.program_id(0) * BE + tl.arange(0, BE)
    k = e % CIN
    column = e // CIN % (GROUPS * COUT)
    t = e // (CIN * GROUPS * COUT)
    at = (column // COUT * CIN + k) * COUT + column % COUT if BACK else column * CIN + k
    at = at * T + t
    tl.store(out + e, tl.load(w + at, mask=e < TOTAL), mask=e < TOTAL)


@triton.jit
def phase_table(
    taps, table, counts, SETS, T: tl.constexpr, K: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """For each phase of a strided input gradient and each set: the taps that reach it.

    Rows (row offset, column offset, tap) in the output gradient's pixels, `counts` of them first.
    """
    phase = tl.program_id(0) // SETS
    i = tl.arange(0, BT)
    cell = tl.load(taps + tl.program_id(0) % SETS * T + i, mask=i < T, other=-1)
    dy, dx, live = decoded(cell, K, DH, DW, PH, PW)
    v = phase // SW - dy
    u = phase % SW - dx
    fits = live & (v % SH == 0) & (u % SW == 0)
    place = tl.cumsum(fits.to(tl.int32), 0) - 1
    row = table + (tl.program_id(0) * T + place) * 3
    tl.store(row, v // SH, mask=fits)
    tl.store(row + 1, u // SW, mask=fits)
    tl.store(row + 2, i, mask=fits)
    tl.store(counts + tl.program_id(0), tl.sum(fits.to(tl.int32), 0))


@triton.jit
def sum_taps(part, out, PARTS, E, T: tl.constexpr, BP: tl.constexpr, BE: tl.constexpr):
    """out[e, t] = sum over p of part[p, t, e], always in the same order."""
    t = tl.program_id(0) % T
    e = tl.program_id(0) // T * BE + tl.arange(0, BE)
    row = tl.arange(0, BP)
    acc = tl.zeros((BP, BE), part.dtype.element_ty)
    for p in range(0, PARTS, BP):
        at = (p + row).to(tl.int64) * (E * T) + t * E
        acc += tl.load(part + at[:, None] + e[None, :], mask=(p + row < PARTS)[:, None] & (e < E)[None, :], other=0.0)
    tl.store(out + e * T + t, tl.sum(acc, axis=0).to(out.dtype.element_ty), mask=e < E)

"""Triton kernels of `mldn_block`, a pair a layer: the 1x1 behind norm, ReLU and dropout, and the k x k behind its norm.

Both are matrix products whose left side is made from what is read, both leave the mean and the squared deviations of a
block of pixels behind each result, and `finish` merges those in a fixed order. The second appends to the buffer that
the next layer's first reads. Weights of groups lie in one matrix, zero between groups.
"""

import triton
import triton.language as tl

from lightkernels._core.triton_math import product, relu, tap_offset


@triton.jit
def norm(affine, stats, at, at_stats, ok, A_ROW, S_ROW, EPS: tl.constexpr):
    """Mean, scale and beta of some channels: gamma and beta, mean and variance are rows of `affine` and `stats`."""
    gamma = tl.load(affine + at, mask=ok, other=0.0)
    beta = tl.load(affine + A_ROW + at, mask=ok, other=0.0)
    mean = tl.load(stats + at_stats, mask=ok, other=0.0)
    var = tl.load(stats + S_ROW + at_stats, mask=ok, other=1.0)
    return mean, gamma / tl.sqrt(var + EPS), beta


@triton.jit
def mix(v):
    v = v ^ (v >> 16)
    v = v * 0x7FEB352D
    v = v ^ (v >> 15)
    v = v * 0x846CA68B
    return v ^ (v >> 16)


@triton.jit
def leave_moments(part, value, block, channel, rows_ok, ok, M, CHANNELS, BM: tl.constexpr):
    """part[block, 0 and 1, channel]: the mean of a block of pixels, and the sum of squares about it.

    The mean is corrected by what is left about it, so that a constant channel has no variance.
    """
    count = tl.minimum(M - block * BM, BM).to(value.dtype)
    mean = tl.sum(tl.where(rows_ok, value, 0.0), axis=0) / count
    apart = tl.where(rows_ok, value - mean[None, :], 0.0)
    left = tl.sum(apart, axis=0) / count
    at = part + block.to(tl.int64) * (2 * CHANNELS) + channel
    tl.store(at, mean + left, mask=ok)
    tl.store(at + CHANNELS, tl.sum(apart * apart, axis=0) - count * left * left, mask=ok)


@triton.jit(do_not_specialize=["M", "C", "W0", "A0", "S0", "A_ROW", "S_ROW", "S_PATH", "THRESHOLD"])
def pointwise(
    u, w, t, affine, stats, seed, part, M, C, W0, A0, S0, A_ROW, S_ROW, S_PATH, THRESHOLD,
    PIXELS: tl.constexpr, PATHS: tl.constexpr, MID: tl.constexpr, UN: tl.constexpr, UC: tl.constexpr, UQ: tl.constexpr,
    U_PATH: tl.constexpr, TN: tl.constexpr, TC: tl.constexpr, TQ: tl.constexpr, EPS: tl.constexpr,
    DROP: tl.constexpr, KEEP: tl.constexpr, STATS: tl.constexpr, MODE: tl.constexpr, ACC: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """t[pixel, path, o] = sum over the first C channels c of the path of w[path, o, c] * relu(norm(u[pixel, path, c])).

    DROP: those whose hash is below THRESHOLD are left out, the others multiplied by KEEP. Strides are of images,
    channels and pixels (Q).
    """
    NB: tl.constexpr = (MID + BN - 1) // BN
    o = tl.program_id(0) % NB * BN + tl.arange(0, BN)
    path = tl.program_id(0) // NB % PATHS
    block = tl.program_id(0) // (NB * PATHS)
    m = block * BM + tl.arange(0, BM)
    n = (m // PIXELS).to(tl.int64)
    q = (m % PIXELS).to(tl.int64)
    src = u + n * UN + q * UQ + (path * U_PATH).to(tl.int64) * UC
    wgt = w + W0 + (path * MID + o) * C
    if DROP:
        low = tl.load(seed).to(tl.uint32)
        high = (tl.load(seed) >> 32).to(tl.uint32)
    acc = tl.zeros((BM, BN), ACC)
    for k0 in range(0, C, BK):
        k = k0 + tl.arange(0, BK)
        ok = k < C
        mean, scale, beta = norm(affine, stats, A0 + path * C + k, S0 + path * S_PATH + k, ok, A_ROW, S_ROW, EPS)
        at = src[:, None] + (k.to(tl.int64) * UC)[None, :]
        a = tl.load(at, mask=(m < M)[:, None] & ok[None, :], other=0.0).to(ACC)
        a = relu((a - mean[None, :]) * scale[None, :] + beta[None, :])
        if DROP:
            key = mix(mix((A0 + path * C + k).to(tl.uint32) ^ low) ^ high)
            kept = mix(m.to(tl.uint32)[:, None] ^ key[None, :]) >= tl.cast(THRESHOLD, tl.uint32)
            a = tl.where(kept, a * KEEP, 0.0)
        v = tl.load(wgt[None, :] + k[:, None], mask=ok[:, None] & (o < MID)[None, :], other=0.0)
        acc = product(a.to(u.dtype.element_ty), v, acc, MODE)
    value = acc.to(t.dtype.element_ty)
    ok = (m < M)[:, None] & (o < MID)[None, :]
    dst = t + n * TN + q * TQ
    tl.store(dst[:, None] + ((path * MID + o).to(tl.int64) * TC)[None, :], value, mask=ok)
    if STATS:
        leave_moments(part, value.to(ACC), block, path * MID + o, (m < M)[:, None], o < MID, M, PATHS * MID, BM)


@triton.jit(do_not_specialize=["M", "START", "A0", "S0", "A_ROW", "S_ROW", "COUNT", "LAYER"])
def spatial(
    t, w, b, y, affine, stats, taps, part, M, START, A0, S0, A_ROW, S_ROW, COUNT, LAYER,
    H: tl.constexpr, W: tl.constexpr, PATHS: tl.constexpr, MID: tl.constexpr, KAPPA: tl.constexpr, K: tl.constexpr,
    TN: tl.constexpr, TC: tl.constexpr, TQ: tl.constexpr, YN: tl.constexpr, YC: tl.constexpr, YQ: tl.constexpr,
    Y_PATH: tl.constexpr, XOR: tl.constexpr, TURN: tl.constexpr, EPS: tl.constexpr, TAPS: tl.constexpr,
    BIAS: tl.constexpr, STATS: tl.constexpr, MODE: tl.constexpr, ACC: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Channels START.. of path (path ^ XOR) + TURN of y: the sum over COUNT cells of w * relu(norm(t)), shifted.

    TAPS: the cells are the layer's and path's own, in `taps`; else 0, 1, ..., in the order of the window.
    """
    NB: tl.constexpr = (KAPPA + BN - 1) // BN
    KB: tl.constexpr = (MID + BK - 1) // BK
    o = tl.program_id(0) % NB * BN + tl.arange(0, BN)
    path = tl.program_id(0) // NB % PATHS
    block = tl.program_id(0) // (NB * PATHS)
    to = ((path ^ XOR) + TURN) % PATHS
    m = block * BM + tl.arange(0, BM)
    n = (m // (H * W)).to(tl.int64)
    row = m // W % H
    col = m % W
    src = t + n * TN + (path * MID).to(tl.int64) * TC
    of = LAYER * PATHS + path
    acc = tl.zeros((BM, BN), ACC)
    for step in range(0, COUNT * KB):
        i = step // KB
        down, right, live = tap_offset(taps + of * COUNT, i, K, TAPS)
        k = step % KB * BK + tl.arange(0, BK)
        mean, scale, beta = norm(affine, stats, A0 + path * MID + k, S0 + path * MID + k, k < MID, A_ROW, S_ROW, EPS)
        r = row + down
        c = col + right
        inside = (m < M) & live & (r >= 0) & (r < H) & (c >= 0) & (c < W)
        ok = inside[:, None] & (k < MID)[None, :]
        at = src + (r * W + c).to(tl.int64) * TQ
        a = tl.load(at[:, None] + (k.to(tl.int64) * TC)[None, :], mask=ok, other=0.0).to(ACC)
        a = tl.where(ok, relu((a - mean[None, :]) * scale[None, :] + beta[None, :]), 0.0)
        at_w = ((of * COUNT + i) * KAPPA + o)[None, :] * MID + k[:, None]
        v = tl.load(w + at_w, mask=(k < MID)[:, None] & (o < KAPPA)[None, :], other=0.0)
        acc = product(a.to(t.dtype.element_ty), v, acc, MODE)
    if BIAS:
        acc += tl.load(b + of * KAPPA + o, mask=o < KAPPA, other=0.0).to(ACC)[None, :]
    value = acc.to(y.dtype.element_ty)
    dst = y + n * YN + (row * W + col).to(tl.int64) * YQ
    at_y = dst[:, None] + ((to * Y_PATH + START + o).to(tl.int64) * YC)[None, :]
    tl.store(at_y, value, mask=(m < M)[:, None] & (o < KAPPA)[None, :])
    if STATS:
        leave_moments(part, value.to(ACC), block, to * KAPPA + o, (m < M)[:, None], o < KAPPA, M, PATHS * KAPPA, BM)


@triton.jit(do_not_specialize=["M", "CHANNELS", "BASE", "PITCH", "ROW", "EACH"])
def finish(
    part, out, M, CHANNELS, BASE, PITCH, ROW, EACH, PATHS: tl.constexpr, XOR: tl.constexpr, TURN: tl.constexpr,
    BM: tl.constexpr, BP: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """Mean and variance of each channel from those of its blocks, always in the same order.

    Channel e is of path p = e // EACH, and goes to column BASE + ((p ^ XOR) + TURN) % PATHS * PITCH + e % EACH, the
    variance ROW further.
    """
    e = tl.program_id(0) * BE + tl.arange(0, BE)
    blocks = tl.cdiv(M, BM)
    total = tl.zeros((BP, BE), part.dtype.element_ty)
    for p in range(0, blocks, BP):
        block = p + tl.arange(0, BP)
        ok = (block < blocks)[:, None] & (e < CHANNELS)[None, :]
        count = tl.minimum(M - block * BM, BM).to(total.dtype)
        at = part + (block.to(tl.int64) * (2 * CHANNELS))[:, None] + e[None, :]
        total += tl.load(at, mask=ok, other=0.0) * count[:, None]
    mean = tl.sum(total, axis=0) / tl.cast(M, total.dtype)
    total = tl.zeros((BP, BE), part.dtype.element_ty)
    left = tl.zeros((BP, BE), part.dtype.element_ty)
    for p in range(0, blocks, BP):
        block = p + tl.arange(0, BP)
        ok = (block < blocks)[:, None] & (e < CHANNELS)[None, :]
        count = tl.minimum(M - block * BM, BM).to(total.dtype)
        at = part + (block.to(tl.int64) * (2 * CHANNELS))[:, None] + e[None, :]
        apart = tl.load(at, mask=ok, other=0.0) - mean[None, :]
        left += tl.where(ok, apart * count[:, None], 0.0)
        total += tl.where(ok, tl.load(at + CHANNELS, mask=ok, other=0.0) + apart * apart * count[:, None], 0.0)
    more = tl.sum(left, axis=0) / tl.cast(M, total.dtype)
    var = tl.sum(total, axis=0) / tl.cast(M, total.dtype) - more * more
    column = BASE + ((e // EACH ^ XOR) + TURN) % PATHS * PITCH + e % EACH
    tl.store(out + column, mean + more, mask=e < CHANNELS)
    tl.store(out + ROW + column, tl.maximum(var, 0.0), mask=e < CHANNELS)


@triton.jit(do_not_specialize=["TOTAL"])
def spread(
    w, taps, out, TOTAL, COUNT: tl.constexpr, KAPPA: tl.constexpr, MID: tl.constexpr, GROUPS: tl.constexpr,
    T: tl.constexpr, SETS: tl.constexpr, DENSE: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """The weights [L P, kappa, m / groups, T] as out[L P, COUNT cells, kappa, m], zero between groups.

    DENSE: the cells are those of the whole window, most of them zero; else the T that all filters share.
    """
    EACH: tl.constexpr = KAPPA // GROUPS
    PART: tl.constexpr = MID // GROUPS
    e = tl.program_id(0) * BE + tl.arange(0, BE)
    c = e % MID
    o = e // MID % KAPPA
    i = e // (MID * KAPPA) % COUNT
    of = e // (MID * KAPPA * COUNT)
    ok = (e < TOTAL) & (o // EACH == c // PART)
    at = ((of * KAPPA + o) * PART + c % PART) * T
    value = tl.zeros((BE,), out.dtype.element_ty)
    if DENSE:
        for t in range(0, T):
            cell = tl.load(taps + (of * SETS + o // (KAPPA // SETS)) * T + t, mask=ok, other=-1)
            hit = ok & (cell == i)
            value = tl.where(hit, tl.load(w + at + t, mask=hit, other=0.0), value)
    else:
        value = tl.load(w + at + i, mask=ok, other=0.0)
    tl.store(out + e, value, mask=e < TOTAL)

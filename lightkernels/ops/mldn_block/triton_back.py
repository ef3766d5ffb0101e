"""Triton kernels of the backward of `mldn_block`, a layer at a time from the last to the first; those that version 2
alone needs are in `triton_second`.

`settle` ends the gradient of channels when the layer that made them is reached; `spatial_back` and `spatial_grad` are
the k x k's, `pointwise_back` and `pointwise_grad` the 1x1's. Activations are computed again from what lies in the
buffer. Gradients of gamma and beta leave each block of pixels as partial sums, which `norm_sums` adds in a fixed order;
gamma times them is what the means and variances of a channel take from its gradient.
"""

import triton
import triton.language as tl

from lightkernels._core.triton_math import product, relu, tap_offset
from lightkernels.ops.mldn_block.triton_kernels import mix, norm


@triton.jit
def inverse(stats, at, ok, S_ROW, EPS: tl.constexpr):
    return 1.0 / tl.sqrt(tl.load(stats + S_ROW + at, mask=ok, other=1.0) + EPS)


@triton.jit
def through(gz, z, affine, stats, grads, at, at_stats, ok, M, A_ROW, S_ROW, EPS: tl.constexpr, BATCH: tl.constexpr):
    """The gradient of a norm's input from that of its output; BATCH: also by way of mean and variance.

    The gradients of gamma and beta are rows of ``grads``, which lies as ``affine`` does.
    """
    mean, scale, _ = norm(affine, stats, at, at_stats, ok, A_ROW, S_ROW, EPS)
    if BATCH:
        count = tl.cast(M, gz.dtype)
        inv = inverse(stats, at_stats, ok, S_ROW, EPS)
        slope = tl.load(grads + at, mask=ok, other=0.0) / count * inv
        gz = gz - (tl.load(grads + A_ROW + at, mask=ok, other=0.0) / count)[None, :]
        gz = gz - (z - mean[None, :]) * slope[None, :]
    return gz * scale[None, :]


@triton.jit
def leave_sums(part, gz, xhat, block, channel, ok, CHANNELS):
    """part[block, 0 and 1, channel]: the sums over a block of pixels that the gradients of gamma and beta are of."""
    at = part + block.to(tl.int64) * (2 * CHANNELS) + channel
    tl.store(at, tl.sum(gz * xhat, axis=0), mask=ok)
    tl.store(at + CHANNELS, tl.sum(gz, axis=0), mask=ok)


@triton.jit(do_not_specialize=["M", "START", "S_ROW"])
def settle(
    d, y, stats, sums, out, part, M, START, S_ROW,
    PIXELS: tl.constexpr, PATHS: tl.constexpr, EACH: tl.constexpr, YN: tl.constexpr, YC: tl.constexpr,
    YQ: tl.constexpr, Y_PATH: tl.constexpr, S_PATH: tl.constexpr, ON: tl.constexpr, OC: tl.constexpr, OQ: tl.constexpr,
    XOR: tl.constexpr, TURN: tl.constexpr, EPS: tl.constexpr, BATCH: tl.constexpr, BIAS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """out[pixel, path, e]: the gradient of channel START + e of path (path ^ XOR) + TURN of y, of which d is the sum
    without what mean and variance take (BATCH). part[block, path, e]: its sum over a block of pixels (BIAS)."""
    NB: tl.constexpr = (EACH + BN - 1) // BN
    e = tl.program_id(0) % NB * BN + tl.arange(0, BN)
    path = tl.program_id(0) // NB % PATHS
    block = tl.program_id(0) // (NB * PATHS)
    origin = ((path ^ XOR) + TURN) % PATHS
    m = block * BM + tl.arange(0, BM)
    n = (m // PIXELS).to(tl.int64)
    q = (m % PIXELS).to(tl.int64)
    ok = (m < M)[:, None] & (e < EACH)[None, :]
    at = (n * YN + q * YQ)[:, None] + ((origin * Y_PATH + START + e).to(tl.int64) * YC)[None, :]
    v = tl.load(d + at, mask=ok, other=0.0)
    if BATCH:
        c = origin * S_PATH + START + e
        mean = tl.load(stats + c, mask=e < EACH, other=0.0)
        inv = inverse(stats, c, e < EACH, S_ROW, EPS)
        count = tl.cast(M, v.dtype)
        c = origin * Y_PATH + START + e
        slope = tl.load(sums + c, mask=e < EACH, other=0.0) / count * inv
        constant = tl.load(sums + PATHS * Y_PATH + c, mask=e < EACH, other=0.0) / count
        u = tl.load(y + at, mask=ok, other=0.0).to(v.dtype)
        v -= ((u - mean[None, :]) * slope[None, :] + constant[None, :]) * inv[None, :]
    to = (n * ON + q * OQ)[:, None] + ((path * EACH + e).to(tl.int64) * OC)[None, :]
    tl.store(out + to, v.to(out.dtype.element_ty), mask=ok)
    if BIAS:
        total = tl.sum(tl.where(ok, v, 0.0), axis=0)
        tl.store(part + block.to(tl.int64) * (PATHS * EACH) + path * EACH + e, total, mask=e < EACH)


@triton.jit(do_not_specialize=["M", "A0", "S0", "A_ROW", "S_ROW", "COUNT", "LAYER"])
def spatial_back(
    g, w, t, affine, stats, taps, out, part, M, A0, S0, A_ROW, S_ROW, COUNT, LAYER,
    H: tl.constexpr, W: tl.constexpr, PATHS: tl.constexpr, MID: tl.constexpr, KAPPA: tl.constexpr, K: tl.constexpr,
    GN: tl.constexpr, GC: tl.constexpr, GQ: tl.constexpr, TN: tl.constexpr, TC: tl.constexpr, TQ: tl.constexpr,
    EPS: tl.constexpr, TAPS: tl.constexpr, MODE: tl.constexpr, ACC: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """out[pixel, path, c]: the gradient of norm(t), from g, the gradient of the k x k's results."""
    NB: tl.constexpr = (MID + BN - 1) // BN
    KB: tl.constexpr = (KAPPA + BK - 1) // BK
    c = tl.program_id(0) % NB * BN + tl.arange(0, BN)
    path = tl.program_id(0) // NB % PATHS
    block = tl.program_id(0) // (NB * PATHS)
    m = block * BM + tl.arange(0, BM)
    n = (m // (H * W)).to(tl.int64)
    row = m // W % H
    col = m % W
    src = g + n * GN + (path * KAPPA).to(tl.int64) * GC
    of = LAYER * PATHS + path
    acc = tl.zeros((BM, BN), ACC)
    for step in range(0, COUNT * KB):
        i = step // KB
        down, right, live = tap_offset(taps + of * COUNT, i, K, TAPS)
        k = step % KB * BK + tl.arange(0, BK)
        r = row - down
        s = col - right
        inside = (m < M) & live & (r >= 0) & (r < H) & (s >= 0) & (s < W)
        at = src + (r * W + s).to(tl.int64) * GQ
        a = tl.load(
            at[:, None] + (k.to(tl.int64) * GC)[None, :], mask=inside[:, None] & (k < KAPPA)[None, :], other=0.0
        )
        at_w = ((of * COUNT + i) * KAPPA + k)[:, None] * MID + c[None, :]
        v = tl.load(w + at_w, mask=(k < KAPPA)[:, None] & (c < MID)[None, :], other=0.0)
        acc = product(a, v, acc, MODE)
    ok = (m < M)[:, None] & (c < MID)[None, :]
    at = (n * TN + (row * W + col).to(tl.int64) * TQ)[:, None] + ((path * MID + c).to(tl.int64) * TC)[None, :]
    z = tl.load(t + at, mask=ok, other=0.0).to(ACC)
    mean, scale, beta = norm(affine, stats, A0 + path * MID + c, S0 + path * MID + c, c < MID, A_ROW, S_ROW, EPS)
    apart = z - mean[None, :]
    value = tl.where(ok & (apart * scale[None, :] + beta[None, :] > 0.0), acc, 0.0).to(out.dtype.element_ty)
    tl.store(out + at, value, mask=ok)
    inv = inverse(stats, S0 + path * MID + c, c < MID, S_ROW, EPS)
    leave_sums(part, value.to(ACC), apart * inv[None, :], block, path * MID + c, c < MID, PATHS * MID)


@triton.jit(do_not_specialize=["BLOCKS", "CHANNELS", "A0", "A_ROW", "EACH", "S_ROW"])
def norm_sums(
    part, affine, grads, sums, BLOCKS, CHANNELS, A0, A_ROW, EACH, S_ROW, S_PATH: tl.constexpr,
    SUMS: tl.constexpr, BP: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """The partial sums of all blocks: the gradients of gamma and beta. SUMS: gamma times them is added to ``sums``."""
    e = tl.program_id(0) * BE + tl.arange(0, BE)
    first = tl.zeros((BP, BE), part.dtype.element_ty)
    second = tl.zeros((BP, BE), part.dtype.element_ty)
    for p in range(0, BLOCKS, BP):
        block = p + tl.arange(0, BP)
        ok = (block < BLOCKS)[:, None] & (e < CHANNELS)[None, :]
        at = part + (block.to(tl.int64) * (2 * CHANNELS))[:, None] + e[None, :]
        first += tl.load(at, mask=ok, other=0.0)
        second += tl.load(at + CHANNELS, mask=ok, other=0.0)
    gamma_sum = tl.sum(first, axis=0)
    beta_sum = tl.sum(second, axis=0)
    tl.store(grads + A0 + e, gamma_sum, mask=e < CHANNELS)
    tl.store(grads + A_ROW + A0 + e, beta_sum, mask=e < CHANNELS)
    if SUMS:
        gamma = tl.load(affine + A0 + e, mask=e < CHANNELS, other=0.0)
        at = sums + e // EACH * S_PATH + e % EACH
        tl.store(at, tl.load(at, mask=e < CHANNELS, other=0.0) + gamma * gamma_sum, mask=e < CHANNELS)
        at += S_ROW
        tl.store(at, tl.load(at, mask=e < CHANNELS, other=0.0) + gamma * beta_sum, mask=e < CHANNELS)


@triton.jit(do_not_specialize=["M", "A0", "S0", "A_ROW", "S_ROW", "COUNT", "LAYER", "ITEMS", "PER"])
def spatial_grad(
    g, t, affine, stats, taps, part, M, A0, S0, A_ROW, S_ROW, COUNT, LAYER, ITEMS, PER,
    H: tl.constexpr, W: tl.constexpr, PATHS: tl.constexpr, MID: tl.constexpr, KAPPA: tl.constexpr, K: tl.constexpr,
    GN: tl.constexpr, GC: tl.constexpr, GQ: tl.constexpr, TN: tl.constexpr, TC: tl.constexpr, TQ: tl.constexpr,
    EPS: tl.constexpr, TAPS: tl.constexpr, MODE: tl.constexpr, ACC: tl.constexpr,
    BM: tl.constexpr, BO: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """First stage: part[p, path, i, o, c] = the sum over a run of pixels of g[pixel, o] * relu(norm(t)), shifted."""
    OB: tl.constexpr = (KAPPA + BO - 1) // BO
    CB: tl.constexpr = (MID + BC - 1) // BC
    pid = tl.program_id(0)
    o = pid % OB * BO + tl.arange(0, BO)
    c = pid // OB % CB * BC + tl.arange(0, BC)
    i = pid // (OB * CB) % COUNT
    path = pid // (OB * CB * COUNT) % PATHS
    p = pid // (OB * CB * COUNT * PATHS)
    down, right, live = tap_offset(taps + (LAYER * PATHS + path) * COUNT, i, K, TAPS)
    at_norm = path * MID + c
    mean, scale, beta = norm(affine, stats, A0 + at_norm, S0 + at_norm, c < MID, A_ROW, S_ROW, EPS)
    acc = tl.zeros((BO, BC), ACC)
    for item in range(p * PER, tl.minimum((p + 1) * PER, ITEMS)):
        m = item * BM + tl.arange(0, BM)
        n = (m // (H * W)).to(tl.int64)
        row = m // W % H
        col = m % W
        at = (g + n * GN + (row * W + col).to(tl.int64) * GQ)[:, None]
        at += ((path * KAPPA + o).to(tl.int64) * GC)[None, :]
        grad = tl.load(at, mask=(m < M)[:, None] & (o < KAPPA)[None, :], other=0.0)
        r = row + down
        s = col + right
        inside = (m < M) & live & (r >= 0) & (r < H) & (s >= 0) & (s < W)
        ok = inside[:, None] & (c < MID)[None, :]
        at_t = (t + n * TN + (r * W + s).to(tl.int64) * TQ)[:, None] + (at_norm.to(tl.int64) * TC)[None, :]
        b = tl.load(at_t, mask=ok, other=0.0).to(ACC)
        b = tl.where(ok, relu((b - mean[None, :]) * scale[None, :] + beta[None, :]), 0.0)
        acc = product(tl.trans(grad), b.to(g.dtype.element_ty), acc, MODE)
    dst = part + ((tl.cast(p, tl.int64) * PATHS + path) * COUNT + i) * (KAPPA * MID)
    tl.store(dst + (o * MID)[:, None] + c[None, :], acc, mask=(o < KAPPA)[:, None] & (c < MID)[None, :])


@triton.jit(do_not_specialize=["TOTAL", "PARTS", "LAYER"])
def collect(
    part, taps, out, TOTAL, PARTS, LAYER, PATHS: tl.constexpr, COUNT: tl.constexpr, KAPPA: tl.constexpr,
    MID: tl.constexpr, GROUPS: tl.constexpr, T: tl.constexpr, SETS: tl.constexpr, DENSE: tl.constexpr,
    CELLS: tl.constexpr, BP: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """Second stage: out[path, o, c, t] of a layer, a group's c, from the parts in their order; the inverse of `spread`.

    Cells that lie outside the window of CELLS have no gradient.
    """
    PART: tl.constexpr = MID // GROUPS
    e = tl.program_id(0) * BE + tl.arange(0, BE)
    t = e % T
    o = e // (T * PART) % KAPPA
    path = e // (T * PART * KAPPA)
    c = o // (KAPPA // GROUPS) * PART + e // T % PART
    ok = e < TOTAL
    if DENSE:
        cell = tl.load(taps + ((LAYER * PATHS + path) * SETS + o // (KAPPA // SETS)) * T + t, mask=ok, other=-1)
        ok = ok & (cell >= 0) & (cell < CELLS)
        i = tl.where(ok, cell, 0).to(tl.int32)
    else:
        i = t
    at = ((path * COUNT + i) * KAPPA + o) * MID + c
    total = tl.zeros((BP, BE), part.dtype.element_ty)
    for first in range(0, PARTS, BP):
        p = first + tl.arange(0, BP)
        row = part + (p.to(tl.int64) * (PATHS * COUNT * KAPPA * MID))[:, None]
        total += tl.load(row + at[None, :], mask=(p < PARTS)[:, None] & ok[None, :], other=0.0)
    tl.store(out + e, tl.sum(total, axis=0).to(out.dtype.element_ty), mask=e < TOTAL)


@triton.jit
def kept_of(seed, m, channel, THRESHOLD):
    """Which values dropout keeps."""
    low = tl.load(seed).to(tl.uint32)
    high = (tl.load(seed) >> 32).to(tl.uint32)
    key = mix(mix(channel.to(tl.uint32) ^ low) ^ high)
    return mix(m.to(tl.uint32)[:, None] ^ key[None, :]) >= tl.cast(THRESHOLD, tl.uint32)


@triton.jit(do_not_specialize=["M", "C", "W0", "A0", "S0", "A_ROW", "S_ROW", "S_PATH", "B0", "B_ROW", "R0", "R_ROW",
                               "THRESHOLD"])  # fmt: skip
def pointwise_back(
    g, t, w, u, d, affine2, stats2, grads2, affine, stats, seed, part,
    M, C, W0, A0, S0, A_ROW, S_ROW, S_PATH, B0, B_ROW, R0, R_ROW, THRESHOLD,
    PIXELS: tl.constexpr, PATHS: tl.constexpr, MID: tl.constexpr, UN: tl.constexpr, UC: tl.constexpr, UQ: tl.constexpr,
    U_PATH: tl.constexpr, TN: tl.constexpr, TC: tl.constexpr, TQ: tl.constexpr, DN: tl.constexpr, DC: tl.constexpr,
    DQ: tl.constexpr, D_PATH: tl.constexpr, EPS: tl.constexpr, DROP: tl.constexpr, KEEP: tl.constexpr,
    BATCH: tl.constexpr, MODE: tl.constexpr, ACC: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Adds to d, for the first C channels of each path of u, what this layer's 1x1 gives back: gamma / sigma times the
    gradient of its norm. g is the gradient of norm2(t); B and R are its norm's columns, A and S those of norm1."""
    NB = tl.cdiv(C, BN)
    j = tl.program_id(0) % NB * BN + tl.arange(0, BN)
    path = tl.program_id(0) // NB % PATHS
    block = tl.program_id(0) // (NB * PATHS)
    m = block * BM + tl.arange(0, BM)
    n = (m // PIXELS).to(tl.int64)
    q = (m % PIXELS).to(tl.int64)
    src = n * TN + q * TQ
    acc = tl.zeros((BM, BN), ACC)
    for first in range(0, MID, BK):
        o = path * MID + first + tl.arange(0, BK)
        ok = first + tl.arange(0, BK) < MID
        at = src[:, None] + (o.to(tl.int64) * TC)[None, :]
        both = (m < M)[:, None] & ok[None, :]
        gz = tl.load(g + at, mask=both, other=0.0).to(ACC)
        z = tl.load(t + at, mask=both, other=0.0).to(ACC)
        gz = through(gz, z, affine2, stats2, grads2, B0 + o, R0 + o, ok, M, B_ROW, R_ROW, EPS, BATCH)
        v = tl.load(w + W0 + (o * C)[:, None] + j[None, :], mask=ok[:, None] & (j < C)[None, :], other=0.0)
        acc = product(tl.where(both, gz, 0.0).to(t.dtype.element_ty), v, acc, MODE)
    ok = (m < M)[:, None] & (j < C)[None, :]
    at = (n * UN + q * UQ)[:, None] + ((path * U_PATH + j).to(tl.int64) * UC)[None, :]
    x = tl.load(u + at, mask=ok, other=0.0).to(ACC)
    column, row = A0 + path * C + j, S0 + path * S_PATH + j
    mean, scale, beta = norm(affine, stats, column, row, j < C, A_ROW, S_ROW, EPS)
    x -= mean[None, :]
    ga = tl.where(ok & (x * scale[None, :] + beta[None, :] > 0.0), acc, 0.0)
    if DROP:
        ga = tl.where(kept_of(seed, m, column, THRESHOLD), ga * KEEP, 0.0)
    inv = inverse(stats, row, j < C, S_ROW, EPS)
    leave_sums(part, ga, x * inv[None, :], block, path * C + j, j < C, PATHS * C)
    at = (n * DN + q * DQ)[:, None] + ((path * D_PATH + j).to(tl.int64) * DC)[None, :]
    tl.store(d + at, tl.load(d + at, mask=ok, other=0.0) + ga * scale[None, :], mask=ok)


@triton.jit(do_not_specialize=["M", "C", "A0", "S0", "A_ROW", "S_ROW", "S_PATH", "B0", "B_ROW", "R0", "R_ROW",
                               "THRESHOLD", "ITEMS", "PER"])  # fmt: skip
def pointwise_grad(
    g, t, u, affine2, stats2, grads2, affine, stats, seed, part,
    M, C, A0, S0, A_ROW, S_ROW, S_PATH, B0, B_ROW, R0, R_ROW, THRESHOLD, ITEMS, PER,
    PIXELS: tl.constexpr, PATHS: tl.constexpr, MID: tl.constexpr, UN: tl.constexpr, UC: tl.constexpr, UQ: tl.constexpr,
    U_PATH: tl.constexpr, TN: tl.constexpr, TC: tl.constexpr, TQ: tl.constexpr, EPS: tl.constexpr,
    DROP: tl.constexpr, KEEP: tl.constexpr, BATCH: tl.constexpr, MODE: tl.constexpr, ACC: tl.constexpr,
    BM: tl.constexpr, BO: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """First stage: part[p, path, o, j] = the sum over pixels of a run of the gradient of t times what the 1x1 read."""
    OB: tl.constexpr = (MID + BO - 1) // BO
    CB = tl.cdiv(C, BC)
    pid = tl.program_id(0)
    row = pid % OB * BO + tl.arange(0, BO)
    j = pid // OB % CB * BC + tl.arange(0, BC)
    path = pid // (OB * CB) % PATHS
    p = pid // (OB * CB * PATHS)
    o = path * MID + row
    column = A0 + path * C + j
    mean, scale, beta = norm(affine, stats, column, S0 + path * S_PATH + j, j < C, A_ROW, S_ROW, EPS)
    acc = tl.zeros((BO, BC), ACC)
    for item in range(p * PER, tl.minimum((p + 1) * PER, ITEMS)):
        m = item * BM + tl.arange(0, BM)
        n = (m // PIXELS).to(tl.int64)
        q = (m % PIXELS).to(tl.int64)
        at = (n * TN + q * TQ)[:, None] + (o.to(tl.int64) * TC)[None, :]
        both = (m < M)[:, None] & (row < MID)[None, :]
        gz = tl.load(g + at, mask=both, other=0.0).to(ACC)
        z = tl.load(t + at, mask=both, other=0.0).to(ACC)
        gz = through(gz, z, affine2, stats2, grads2, B0 + o, R0 + o, row < MID, M, B_ROW, R_ROW, EPS, BATCH)
        gz = tl.where(both, gz, 0.0).to(t.dtype.element_ty)
        ok = (m < M)[:, None] & (j < C)[None, :]
        at_u = (n * UN + q * UQ)[:, None] + ((path * U_PATH + j).to(tl.int64) * UC)[None, :]
        a = tl.load(u + at_u, mask=ok, other=0.0).to(ACC)
        a = tl.where(ok, relu((a - mean[None, :]) * scale[None, :] + beta[None, :]), 0.0)
        if DROP:
            a = tl.where(kept_of(seed, m, column, THRESHOLD), a * KEEP, 0.0)
        acc = product(tl.trans(gz), a.to(t.dtype.element_ty), acc, MODE)
    dst = part + (tl.cast(p, tl.int64) * PATHS + path) * (MID * C) + (row * C)[:, None] + j[None, :]
    tl.store(dst, acc, mask=(row < MID)[:, None] & (j < C)[None, :])

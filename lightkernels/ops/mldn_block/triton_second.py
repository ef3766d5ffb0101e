"""Triton kernels of the backward of `mldn_block`, version 2: what reactivation adds to it, layer by layer.

d is the gradient of the buffer after the layer, of which the first C channels of a path are what came in and what was
added to it. u is what the layer read, with its new channels behind them on the path that receives them. Each layer has
statistics of its own, so nothing is left for later: `recentre` takes what means and variances do from the gradient.
"""

import triton
import triton.language as tl

from lightkernels._core.triton_math import product, relu
from lightkernels.ops.mldn_block.triton_back import inverse, leave_sums, through
from lightkernels.ops.mldn_block.triton_kernels import norm


@triton.jit(do_not_specialize=["M", "C", "W0", "A0", "S0", "A_ROW", "S_ROW"])
def reactivate_back(
    d, w, u, affine, stats, out, part, M, C, W0, A0, S0, A_ROW, S_ROW,
    PIXELS: tl.constexpr, PATHS: tl.constexpr, KAPPA: tl.constexpr, DN: tl.constexpr, DC: tl.constexpr,
    DQ: tl.constexpr, D_PATH: tl.constexpr, UN: tl.constexpr, UC: tl.constexpr, UQ: tl.constexpr,
    U_PATH: tl.constexpr, GN: tl.constexpr, GC: tl.constexpr, GQ: tl.constexpr, XOR: tl.constexpr, TURN: tl.constexpr,
    EPS: tl.constexpr, MODE: tl.constexpr, ACC: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """out[pixel, path, k]: the gradient of norm3(h), from that of the first C channels by w[path, j, k]."""
    NB: tl.constexpr = (KAPPA + BN - 1) // BN
    k = tl.program_id(0) % NB * BN + tl.arange(0, BN)
    path = tl.program_id(0) // NB % PATHS
    block = tl.program_id(0) // (NB * PATHS)
    to = ((path ^ XOR) + TURN) % PATHS
    m = block * BM + tl.arange(0, BM)
    n = (m // PIXELS).to(tl.int64)
    q = (m % PIXELS).to(tl.int64)
    src = d + n * DN + q * DQ
    acc = tl.zeros((BM, BN), ACC)
    for first in range(0, C, BK):
        j = first + tl.arange(0, BK)
        at = src[:, None] + ((path * D_PATH + j).to(tl.int64) * DC)[None, :]
        a = tl.load(at, mask=(m < M)[:, None] & (j < C)[None, :], other=0.0).to(out.dtype.element_ty)
        at_w = (w + W0 + (path * C + j) * KAPPA)[:, None] + k[None, :]
        v = tl.load(at_w, mask=(j < C)[:, None] & (k < KAPPA)[None, :], other=0.0)
        acc = product(a, v, acc, MODE)
    ok = (m < M)[:, None] & (k < KAPPA)[None, :]
    at = (u + n * UN + q * UQ)[:, None] + ((to * U_PATH + C + k).to(tl.int64) * UC)[None, :]
    h = tl.load(at, mask=ok, other=0.0).to(ACC)
    column = path * KAPPA + k
    mean, scale, beta = norm(affine, stats, A0 + column, S0 + column, k < KAPPA, A_ROW, S_ROW, EPS)
    apart = h - mean[None, :]
    value = tl.where(ok & (apart * scale[None, :] + beta[None, :] > 0.0), acc, 0.0).to(out.dtype.element_ty)
    tl.store((out + n * GN + q * GQ)[:, None] + (column.to(tl.int64) * GC)[None, :], value, mask=ok)
    inv = inverse(stats, S0 + column, k < KAPPA, S_ROW, EPS)
    leave_sums(part, value.to(ACC), apart * inv[None, :], block, column, k < KAPPA, PATHS * KAPPA)


@triton.jit(do_not_specialize=["M", "C", "A0", "S0", "A_ROW", "S_ROW", "ITEMS", "PER"])
def reactivate_grad(
    d, u, affine, stats, part, M, C, A0, S0, A_ROW, S_ROW, ITEMS, PER,
    PIXELS: tl.constexpr, PATHS: tl.constexpr, KAPPA: tl.constexpr, DN: tl.constexpr, DC: tl.constexpr,
    DQ: tl.constexpr, D_PATH: tl.constexpr, UN: tl.constexpr, UC: tl.constexpr, UQ: tl.constexpr,
    U_PATH: tl.constexpr, XOR: tl.constexpr, TURN: tl.constexpr, EPS: tl.constexpr, MODE: tl.constexpr,
    ACC: tl.constexpr, BM: tl.constexpr, BO: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """First stage: part[p, path, j, k] = the sum over a run of pixels of d[pixel, path, j] * relu(norm3(h))."""
    OB: tl.constexpr = (KAPPA + BO - 1) // BO
    CB = tl.cdiv(C, BC)
    pid = tl.program_id(0)
    k = pid % OB * BO + tl.arange(0, BO)
    j = pid // OB % CB * BC + tl.arange(0, BC)
    path = pid // (OB * CB) % PATHS
    p = pid // (OB * CB * PATHS)
    to = ((path ^ XOR) + TURN) % PATHS
    column = path * KAPPA + k
    mean, scale, beta = norm(affine, stats, A0 + column, S0 + column, k < KAPPA, A_ROW, S_ROW, EPS)
    acc = tl.zeros((BC, BO), ACC)
    for item in range(p * PER, tl.minimum((p + 1) * PER, ITEMS)):
        m = item * BM + tl.arange(0, BM)
        n = (m // PIXELS).to(tl.int64)
        q = (m % PIXELS).to(tl.int64)
        at = (d + n * DN + q * DQ)[:, None] + ((path * D_PATH + j).to(tl.int64) * DC)[None, :]
        g = tl.load(at, mask=(m < M)[:, None] & (j < C)[None, :], other=0.0).to(u.dtype.element_ty)
        ok = (m < M)[:, None] & (k < KAPPA)[None, :]
        at = (u + n * UN + q * UQ)[:, None] + ((to * U_PATH + C + k).to(tl.int64) * UC)[None, :]
        h = tl.load(at, mask=ok, other=0.0).to(ACC)
        a = tl.where(ok, relu((h - mean[None, :]) * scale[None, :] + beta[None, :]), 0.0)
        acc = product(tl.trans(g), a.to(u.dtype.element_ty), acc, MODE)
    dst = part + (tl.cast(p, tl.int64) * PATHS + path) * (C * KAPPA)
    tl.store(dst + (j * KAPPA)[:, None] + k[None, :], acc, mask=(j < C)[:, None] & (k < KAPPA)[None, :])


@triton.jit(do_not_specialize=["M", "C", "A0", "S0", "A_ROW", "S_ROW"])
def join(
    d, g, u, affine, stats, grads, out, part, M, C, A0, S0, A_ROW, S_ROW,
    PIXELS: tl.constexpr, PATHS: tl.constexpr, KAPPA: tl.constexpr, DN: tl.constexpr, DC: tl.constexpr,
    DQ: tl.constexpr, D_PATH: tl.constexpr, UN: tl.constexpr, UC: tl.constexpr, UQ: tl.constexpr,
    U_PATH: tl.constexpr, GN: tl.constexpr, GC: tl.constexpr, GQ: tl.constexpr, XOR: tl.constexpr, TURN: tl.constexpr,
    EPS: tl.constexpr, BATCH: tl.constexpr, BIAS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """out[pixel, path, k]: the gradient of h, as the channel that the partner received and by way of norm3, whose is g.

    part[block, path, k]: its sum over a block of pixels (BIAS)."""
    NB: tl.constexpr = (KAPPA + BN - 1) // BN
    k = tl.program_id(0) % NB * BN + tl.arange(0, BN)
    path = tl.program_id(0) // NB % PATHS
    block = tl.program_id(0) // (NB * PATHS)
    to = ((path ^ XOR) + TURN) % PATHS
    m = block * BM + tl.arange(0, BM)
    n = (m // PIXELS).to(tl.int64)
    q = (m % PIXELS).to(tl.int64)
    ok = (m < M)[:, None] & (k < KAPPA)[None, :]
    column = path * KAPPA + k
    own = (n * GN + q * GQ)[:, None] + (column.to(tl.int64) * GC)[None, :]
    at = (d + n * DN + q * DQ)[:, None] + ((to * D_PATH + C + k).to(tl.int64) * DC)[None, :]
    v = tl.load(at, mask=ok, other=0.0)
    at = (u + n * UN + q * UQ)[:, None] + ((to * U_PATH + C + k).to(tl.int64) * UC)[None, :]
    h = tl.load(at, mask=ok, other=0.0).to(v.dtype)
    gz = tl.load(g + own, mask=ok, other=0.0).to(v.dtype)
    v += through(gz, h, affine, stats, grads, A0 + column, S0 + column, k < KAPPA, M, A_ROW, S_ROW, EPS, BATCH)
    tl.store(out + own, v.to(out.dtype.element_ty), mask=ok)
    if BIAS:
        total = tl.sum(tl.where(ok, v, 0.0), axis=0)
        tl.store(part + block.to(tl.int64) * (PATHS * KAPPA) + column, total, mask=k < KAPPA)


@triton.jit(do_not_specialize=["M", "C", "S0", "S_ROW"])
def recentre(
    d, u, stats, sums, M, C, S0, S_ROW,
    PIXELS: tl.constexpr, PATHS: tl.constexpr, DN: tl.constexpr, DC: tl.constexpr, DQ: tl.constexpr,
    D_PATH: tl.constexpr, UN: tl.constexpr, UC: tl.constexpr, UQ: tl.constexpr, U_PATH: tl.constexpr,
    EPS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """From the first C channels of each path of d: what norm1's means and variances take, by two sums a channel."""
    NB = tl.cdiv(C, BN)
    j = tl.program_id(0) % NB * BN + tl.arange(0, BN)
    path = tl.program_id(0) // NB % PATHS
    m = tl.program_id(0) // (NB * PATHS) * BM + tl.arange(0, BM)
    n = (m // PIXELS).to(tl.int64)
    q = (m % PIXELS).to(tl.int64)
    ok = (m < M)[:, None] & (j < C)[None, :]
    at = (d + n * DN + q * DQ)[:, None] + ((path * D_PATH + j).to(tl.int64) * DC)[None, :]
    v = tl.load(at, mask=ok, other=0.0)
    x = (u + n * UN + q * UQ)[:, None] + ((path * U_PATH + j).to(tl.int64) * UC)[None, :]
    x = tl.load(x, mask=ok, other=0.0).to(v.dtype)
    c = S0 + path * C + j
    mean = tl.load(stats + c, mask=j < C, other=0.0)
    inv = inverse(stats, c, j < C, S_ROW, EPS)
    count = tl.cast(M, v.dtype)
    slope = tl.load(sums + path * D_PATH + j, mask=j < C, other=0.0) / count * inv
    constant = tl.load(sums + (PATHS + path) * D_PATH + j, mask=j < C, other=0.0) / count
    tl.store(at, v - ((x - mean[None, :]) * slope[None, :] + constant[None, :]) * inv[None, :], mask=ok)

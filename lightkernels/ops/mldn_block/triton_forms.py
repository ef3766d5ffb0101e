"""Triton kernels of the other forms of `mldn_block`: version 2's reactivation, and what a condensed block has."""

import triton
import triton.language as tl

from lightkernels._core.triton_math import product, relu
from lightkernels.ops.mldn_block.triton_kernels import leave_moments, norm


@triton.jit(do_not_specialize=["M", "C", "W0", "A0", "S0", "A_ROW", "S_ROW"])
def reactivate(
    y, out, w, affine, stats, part, M, C, W0, A0, S0, A_ROW, S_ROW,
    PIXELS: tl.constexpr, PATHS: tl.constexpr, KAPPA: tl.constexpr, YN: tl.constexpr, YC: tl.constexpr,
    YQ: tl.constexpr, Y_PATH: tl.constexpr, XOR: tl.constexpr, TURN: tl.constexpr, EPS: tl.constexpr,
    STATS: tl.constexpr, MODE: tl.constexpr, ACC: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The first C channels of each path of y plus the sums over i of w[path, j, i] * relu(norm(h[pixel, i])), to out.

    h is what the path made: it lies behind the first C channels of path (path ^ XOR) + TURN, where nothing is changed.
    out lies as y does, and may be y.
    """
    NB = tl.cdiv(C, BN)
    j = tl.program_id(0) % NB * BN + tl.arange(0, BN)
    path = tl.program_id(0) // NB % PATHS
    block = tl.program_id(0) // (NB * PATHS)
    to = ((path ^ XOR) + TURN) % PATHS
    m = block * BM + tl.arange(0, BM)
    place = (m // PIXELS).to(tl.int64) * YN + (m % PIXELS).to(tl.int64) * YQ
    acc = tl.zeros((BM, BN), ACC)
    for first in range(0, KAPPA, BK):
        k = first + tl.arange(0, BK)
        column = path * KAPPA + k
        mean, scale, beta = norm(affine, stats, A0 + column, S0 + column, k < KAPPA, A_ROW, S_ROW, EPS)
        at = (y + place)[:, None] + ((to * Y_PATH + C + k).to(tl.int64) * YC)[None, :]
        h = tl.load(at, mask=(m < M)[:, None] & (k < KAPPA)[None, :], other=0.0).to(ACC)
        h = relu((h - mean[None, :]) * scale[None, :] + beta[None, :])
        at_w = (w + W0 + (path * C + j) * KAPPA)[None, :] + k[:, None]
        v = tl.load(at_w, mask=(k < KAPPA)[:, None] & (j < C)[None, :], other=0.0)
        acc = product(h.to(y.dtype.element_ty), v, acc, MODE)
    ok = (m < M)[:, None] & (j < C)[None, :]
    at = (y + place)[:, None] + ((path * Y_PATH + j).to(tl.int64) * YC)[None, :]
    value = (tl.load(at, mask=ok, other=0.0).to(ACC) + acc).to(y.dtype.element_ty)
    at = (out + place)[:, None] + ((path * Y_PATH + j).to(tl.int64) * YC)[None, :]
    tl.store(at, value, mask=ok)
    if STATS:
        leave_moments(part, value.to(ACC), block, path * C + j, (m < M)[:, None], j < C, M, PATHS * C, BM)


@triton.jit(do_not_specialize=["M", "C", "PICKED", "W0", "A0", "A_ROW", "S_ROW"])
def condensed(
    u, w, t, index, affine, stats, M, C, PICKED, W0, A0, A_ROW, S_ROW,
    PIXELS: tl.constexpr, PATHS: tl.constexpr, MID: tl.constexpr, GROUPS: tl.constexpr, UN: tl.constexpr,
    UC: tl.constexpr, UQ: tl.constexpr, U_PATH: tl.constexpr, TN: tl.constexpr, TC: tl.constexpr, TQ: tl.constexpr,
    EPS: tl.constexpr, MODE: tl.constexpr, ACC: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """t[pixel, path, o], o = j * GROUPS + group: the sum over the group's PICKED channels, of the path's first C, of
    w[path, o, k] * relu(norm(u)). Norms and ``index`` lie side by side; of a channel that is none, nothing is read."""
    EACH: tl.constexpr = MID // GROUPS
    NB: tl.constexpr = (EACH + BN - 1) // BN
    j = tl.program_id(0) % NB * BN + tl.arange(0, BN)
    group = tl.program_id(0) // NB % GROUPS
    path = tl.program_id(0) // (NB * GROUPS) % PATHS
    m = tl.program_id(0) // (NB * GROUPS * PATHS) * BM + tl.arange(0, BM)
    n = (m // PIXELS).to(tl.int64)
    q = (m % PIXELS).to(tl.int64)
    o = path * MID + j * GROUPS + group
    src = u + n * UN + q * UQ + (path * U_PATH).to(tl.int64) * UC
    acc = tl.zeros((BM, BN), ACC)
    for first in range(0, PICKED, BK):
        k = first + tl.arange(0, BK)
        column = A0 + (path * GROUPS + group) * PICKED + k
        channel = tl.load(index + column, mask=k < PICKED, other=-1)
        live = (channel >= 0) & (channel < C)
        mean, scale, beta = norm(affine, stats, column, column, k < PICKED, A_ROW, S_ROW, EPS)
        at = src[:, None] + (channel * UC)[None, :]
        a = tl.load(at, mask=(m < M)[:, None] & live[None, :], other=0.0).to(ACC)
        a = relu((a - mean[None, :]) * scale[None, :] + beta[None, :])
        at_w = (w + W0 + o * PICKED)[None, :] + k[:, None]
        v = tl.load(at_w, mask=(k < PICKED)[:, None] & (j < EACH)[None, :], other=0.0)
        acc = product(a.to(u.dtype.element_ty), v, acc, MODE)
    dst = (t + n * TN + q * TQ)[:, None] + (o.to(tl.int64) * TC)[None, :]
    tl.store(dst, acc.to(t.dtype.element_ty), mask=(m < M)[:, None] & (j < EACH)[None, :])


@triton.jit(do_not_specialize=["TOTAL"])
def reach(
    w, index, out, TOTAL, WIDTH: tl.constexpr, LAYERS: tl.constexpr, PATHS: tl.constexpr, KAPPA: tl.constexpr,
    GROUPS: tl.constexpr, PART: tl.constexpr, BE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The reactivation of a condensed block, w[row, kappa / groups] of the channels ``index``, into out[column, kappa],
    which is zero. WIDTH: channels of a path in the first layer; a group reaches 1 / PART of them. Rows of a group that
    name the same channel all store the same sum."""
    row = tl.program_id(0) * BE + tl.arange(0, BE)
    before = 0
    columns = 0
    first = tl.zeros((BE,), tl.int32)
    start = tl.zeros((BE,), tl.int32)
    wide = tl.full((BE,), PART, tl.int32)
    for layer in tl.static_range(0, LAYERS):
        width = WIDTH + layer * KAPPA
        here = row >= before
        first = tl.where(here, before, first)
        start = tl.where(here, columns, start)
        wide = tl.where(here, width, wide)
        before += PATHS * GROUPS * (width // PART)
        columns += PATHS * width
    each = wide // PART
    block = (row - first) // each
    channel = tl.load(index + row, mask=row < TOTAL, other=-1)
    ok = (channel >= 0) & (channel < wide)
    to = (start + block // GROUPS * wide + tl.where(ok, channel, 0).to(tl.int32)) * KAPPA + block % GROUPS
    begin = first + block * each
    for i in range(0, KAPPA // GROUPS):
        total = tl.zeros((BE,), ACC)
        for j in range(0, (WIDTH + (LAYERS - 1) * KAPPA) // PART):
            there = ok & (j < each)
            same = there & (tl.load(index + begin + j, mask=there, other=-1) == channel)
            total += tl.load(w + (begin + j) * (KAPPA // GROUPS) + i, mask=same, other=0.0).to(ACC)
        tl.store(out + to + i * GROUPS, total, mask=ok)

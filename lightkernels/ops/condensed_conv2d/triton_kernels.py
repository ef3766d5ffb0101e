"""Triton kernels of `condensed_conv2d`: matrix products whose left side is picked, scaled, shifted and activated as it
is read, and whose results are stored where the channel shuffle would put them.

Rows are pixels. A group has EACH outputs, j * GROUPS + group, and PICKED channels of x; of those that do not exist
nothing is read. Pixels of one image are H rows of W, or one row where they lie without gaps. The programs of all groups
for the same pixels follow one another, so that what they share is read from memory once.
"""

import triton
import triton.language as tl

from lightkernels._core.triton_math import product, relu


@triton.jit
def activate(z, HARD: tl.constexpr):
    return z * tl.minimum(relu(z + 3.0), 6.0, propagate_nan=tl.PropagateNan.ALL) / 6.0 if HARD else relu(z)


@triton.jit
def pixels(block, M, H: tl.constexpr, W: tl.constexpr, BM: tl.constexpr):
    """Image, row, column and existence of a block of pixels."""
    m = block * BM + tl.arange(0, BM)
    return (m // (H * W)).to(tl.int64), (m // W % H).to(tl.int64), (m % W).to(tl.int64), m < M


@triton.jit
def picked(
    x, index, scale, shift, src, rows_ok, group, k, C, XC: tl.constexpr, PICKED: tl.constexpr, ACC: tl.constexpr
):
    """x at the pixels ``src`` of the channels k of a group; the scale and the shift that they take."""
    e = group * PICKED + k
    q = tl.load(index + e, mask=k < PICKED, other=-1)
    live = (q >= 0) & (q < C)
    at = src[:, None] + (q * XC)[None, :]
    v = tl.load(at, mask=rows_ok[:, None] & live[None, :], other=0.0).to(ACC)
    s = tl.load(scale + e, mask=k < PICKED, other=0.0)
    return v, s, tl.load(shift + e, mask=k < PICKED, other=0.0)


@triton.jit(do_not_specialize=["M", "C"])
def forward(
    x, w, index, scale, shift, y, M, C,
    H: tl.constexpr, W: tl.constexpr, XN: tl.constexpr, XC: tl.constexpr, XH: tl.constexpr, XW: tl.constexpr,
    YN: tl.constexpr, YC: tl.constexpr, YQ: tl.constexpr, GROUPS: tl.constexpr, PICKED: tl.constexpr,
    EACH: tl.constexpr, HARD: tl.constexpr, MODE: tl.constexpr, ACC: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y[pixel, j * GROUPS + group] = the sum over the group's picked channels of w * activation(scale * x + shift)."""
    NB: tl.constexpr = (EACH + BN - 1) // BN
    j = tl.program_id(0) % NB * BN + tl.arange(0, BN)
    group = tl.program_id(0) // NB % GROUPS
    n, row, col, rows_ok = pixels(tl.program_id(0) // (NB * GROUPS), M, H, W, BM)
    src = x + n * XN + row * XH + col * XW
    o = j * GROUPS + group
    acc = tl.zeros((BM, BN), ACC)
    for k0 in range(0, PICKED, BK):
        k = k0 + tl.arange(0, BK)
        a, s, b = picked(x, index, scale, shift, src, rows_ok, group, k, C, XC, PICKED, ACC)
        a = activate(a * s[None, :] + b[None, :], HARD)
        v = tl.load(w + (o * PICKED)[None, :] + k[:, None], mask=(k < PICKED)[:, None] & (j < EACH)[None, :], other=0.0)
        acc = product(a.to(x.dtype.element_ty), v, acc, MODE)
    dst = y + n * YN + (row * W + col) * YQ
    ok = rows_ok[:, None] & (j < EACH)[None, :]
    tl.store(dst[:, None] + (o.to(tl.int64) * YC)[None, :], acc.to(y.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=["M", "C"])
def grad_picked(
    g, x, w, index, scale, shift, out, part, M, C,
    H: tl.constexpr, W: tl.constexpr, XN: tl.constexpr, XC: tl.constexpr, XH: tl.constexpr, XW: tl.constexpr,
    GN: tl.constexpr, GC: tl.constexpr, GQ: tl.constexpr, ON: tl.constexpr, OC: tl.constexpr, OQ: tl.constexpr,
    GROUPS: tl.constexpr, PICKED: tl.constexpr, EACH: tl.constexpr, HARD: tl.constexpr, MODE: tl.constexpr,
    ACC: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The gradient of each picked channel, into ``out``; part[block, 0 and 1]: its scale's and its shift's."""
    KB: tl.constexpr = (PICKED + BN - 1) // BN
    k = tl.program_id(0) % KB * BN + tl.arange(0, BN)
    group = tl.program_id(0) // KB % GROUPS
    block = tl.program_id(0) // (KB * GROUPS)
    n, row, col, rows_ok = pixels(block, M, H, W, BM)
    src = g + n * GN + (row * W + col) * GQ
    acc = tl.zeros((BM, BN), ACC)
    for j0 in range(0, EACH, BK):
        j = j0 + tl.arange(0, BK)
        o = j * GROUPS + group
        at = src[:, None] + (o.to(tl.int64) * GC)[None, :]
        a = tl.load(at, mask=rows_ok[:, None] & (j < EACH)[None, :], other=0.0)
        v = tl.load(w + (o * PICKED)[:, None] + k[None, :], mask=(j < EACH)[:, None] & (k < PICKED)[None, :], other=0.0)
        acc = product(a, v, acc, MODE)
    place = x + n * XN + row * XH + col * XW
    u, s, b = picked(x, index, scale, shift, place, rows_ok, group, k, C, XC, PICKED, ACC)
    z = u * s[None, :] + b[None, :]
    if HARD:
        slope = tl.where(tl.abs(z) < 3.0, (2.0 * z + 3.0) / 6.0, tl.where(z > 0.0, 1.0, 0.0))
        gz = acc * slope
    else:
        gz = tl.where(z > 0.0, acc, 0.0)
    e = group * PICKED + k
    to = out + n * ON + (row * W + col) * OQ
    ok = rows_ok[:, None] & (k < PICKED)[None, :]
    tl.store(to[:, None] + (e.to(tl.int64) * OC)[None, :], gz * s[None, :], mask=ok)
    gz = tl.where(ok, gz, 0.0)
    sums = part + block.to(tl.int64) * (2 * GROUPS * PICKED) + e
    tl.store(sums, tl.sum(gz * u, axis=0), mask=k < PICKED)
    tl.store(sums + GROUPS * PICKED, tl.sum(gz, axis=0), mask=k < PICKED)


@triton.jit(do_not_specialize=["M", "C"])
def collect(
    grads, order, bounds, out, M, C,
    H: tl.constexpr, W: tl.constexpr, GN: tl.constexpr, GC: tl.constexpr, GQ: tl.constexpr,
    XN: tl.constexpr, XC: tl.constexpr, XQ: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """out[pixel, c] = the sum of grads[pixel, order[i]] for bounds[c] <= i < bounds[c + 1], in this order."""
    CB = tl.cdiv(C, BN)
    c = tl.program_id(0) % CB * BN + tl.arange(0, BN)
    n, row, col, rows_ok = pixels(tl.program_id(0) // CB, M, H, W, BM)
    first = tl.load(bounds + c, mask=c < C, other=0)
    count = tl.load(bounds + c + 1, mask=c < C, other=0) - first
    src = grads + n * GN + (row * W + col) * GQ
    acc = tl.zeros((BM, BN), grads.dtype.element_ty)
    for i in range(0, tl.max(count, axis=0)):
        e = tl.load(order + first + i, mask=i < count, other=0)
        at = src[:, None] + (e * GC)[None, :]
        acc += tl.load(at, mask=rows_ok[:, None] & (i < count)[None, :], other=0.0)
    dst = out + n * XN + (row * W + col) * XQ
    ok = rows_ok[:, None] & (c < C)[None, :]
    tl.store(dst[:, None] + (c.to(tl.int64) * XC)[None, :], acc.to(out.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=["M", "C", "ITEMS", "PER"])
def grad_weight(
    g, x, index, scale, shift, part, M, C, ITEMS, PER,
    H: tl.constexpr, W: tl.constexpr, XN: tl.constexpr, XC: tl.constexpr, XH: tl.constexpr, XW: tl.constexpr,
    GN: tl.constexpr, GC: tl.constexpr, GQ: tl.constexpr, GROUPS: tl.constexpr, PICKED: tl.constexpr,
    EACH: tl.constexpr, HARD: tl.constexpr, MODE: tl.constexpr, ACC: tl.constexpr,
    BM: tl.constexpr, BO: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """First stage: part[p, o, k] = the sum over a run of pixels of g[pixel, o] * activation(scale * x + shift)."""
    OB: tl.constexpr = (EACH + BO - 1) // BO
    KB: tl.constexpr = (PICKED + BK - 1) // BK
    pid = tl.program_id(0)
    j = pid % OB * BO + tl.arange(0, BO)
    k = pid // OB % KB * BK + tl.arange(0, BK)
    group = pid // (OB * KB) % GROUPS
    p = pid // (OB * KB * GROUPS)
    o = j * GROUPS + group
    acc = tl.zeros((BO, BK), ACC)
    for item in range(p * PER, tl.minimum((p + 1) * PER, ITEMS)):
        n, row, col, rows_ok = pixels(item, M, H, W, BM)
        at = (g + n * GN + (row * W + col) * GQ)[:, None] + (o.to(tl.int64) * GC)[None, :]
        grad = tl.load(at, mask=rows_ok[:, None] & (j < EACH)[None, :], other=0.0)
        src = x + n * XN + row * XH + col * XW
        a, s, b = picked(x, index, scale, shift, src, rows_ok, group, k, C, XC, PICKED, ACC)
        a = tl.where(rows_ok[:, None], activate(a * s[None, :] + b[None, :], HARD), 0.0)
        acc = product(tl.trans(grad), a.to(g.dtype.element_ty), acc, MODE)
    dst = part + tl.cast(p, tl.int64) * (GROUPS * EACH * PICKED) + (o * PICKED)[:, None] + k[None, :]
    tl.store(dst, acc, mask=(j < EACH)[:, None] & (k < PICKED)[None, :])

# ruff: noqa: RUF005 (Triton has no starred tuples)
"""Tensor-core Triton kernel of `multi_dwconv2d` for 16-bit NCHW images of at most 64 pixels.

A small image is one row vector, and its convolution one matrix, [input pixels, output pixels], whatever the kernel,
dilation and stride; the input gradient is the transposed matrix. A program owns a channel, builds its matrices and
multiplies the images of the batch by them. As in `triton_dot`, sums of weights take a leading and a trailing part, and
an Inf or NaN spreads, here over its image and channel.
"""

import triton
import triton.language as tl

from lightkernels.ops.multi_dwconv2d.triton_kernels import area, at, constexpr_function, prefix, size


@constexpr_function
def plane_pairs(count, combine, back):
    """((input slab, output slab, branches), ...), one matrix each."""
    if combine == "add":
        return ((0, 0, tuple(range(count))),)
    if not back:
        return tuple((0, m, (m,)) for m in range(count))
    return tuple((m, 0, tuple(range(m + 1)) if combine == "cumulative" else (m,)) for m in range(count))


@triton.jit
def plane_matrix(w, c, C, dy, dx, ok, BRANCHES: tl.constexpr, KERNELS: tl.constexpr, DILATIONS: tl.constexpr):
    """At each pair of pixels the sum of the branches' weights at the offset (dy, dx)."""
    total = tl.zeros(dy.shape, tl.float32)
    for i in tl.static_range(size(BRANCHES)):
        K = at(KERNELS, at(BRANCHES, i))
        D = at(DILATIONS, at(BRANCHES, i))
        R = K // 2
        inside = ok & (dy >= -R * D) & (dy <= R * D) & (dx >= -R * D) & (dx <= R * D) & (dy % D == 0) & (dx % D == 0)
        start = C * prefix(KERNELS, at(BRANCHES, i)) + c * area(KERNELS, at(BRANCHES, i))
        total += tl.load(w + start + (dy // D + R) * K + (dx // D + R), mask=inside, other=0.0).to(tl.float32)
    return total


@triton.jit(do_not_specialize=["N", "ITEMS", "PER"])
def conv_plane(
    x, w, b, y, X0, Y0, W0, N, C, XN, YN, ITEMS, PER,
    HI: tl.constexpr, WI: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, XC: tl.constexpr, YC: tl.constexpr,
    KERNELS: tl.constexpr, DILATIONS: tl.constexpr, COMBINE: tl.constexpr, STRIDE: tl.constexpr, BACK: tl.constexpr,
    BIAS: tl.constexpr, BM: tl.constexpr, BQ: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    """y[n, o] = sum over i of x[n, i] * matrix[i, o], BM images at a time; BACK: x is the gradient, y the input's."""
    PAIRS: tl.constexpr = plane_pairs(size(KERNELS), COMBINE, BACK)
    SLABS: tl.constexpr = 1 if BACK or COMBINE == "add" else size(KERNELS)
    SH: tl.constexpr = at(STRIDE, 0)
    SW: tl.constexpr = at(STRIDE, 1)
    c = tl.program_id(0) % C
    p = tl.program_id(0) // C
    q = tl.arange(0, BQ)
    o = tl.arange(0, BO)
    if BACK:
        dy = (o // WO)[None, :] - SH * (q // WI)[:, None]
        dx = (o % WO)[None, :] - SW * (q % WI)[:, None]
    else:
        dy = (q // WI)[:, None] - SH * (o // WO)[None, :]
        dx = (q % WI)[:, None] - SW * (o % WO)[None, :]
    ok = (q < HI * WI)[:, None] & (o < HO * WO)[None, :]
    lead = ()
    trail = ()
    for e in tl.static_range(size(PAIRS)):
        t = plane_matrix(w + W0, c, C, dy, dx, ok, at(PAIRS, e, 2), KERNELS, DILATIONS)
        t16 = t.to(x.dtype.element_ty)
        lead += (t16,)
        trail += ((t - t16.to(tl.float32)).to(x.dtype.element_ty),)

    m = tl.arange(0, BM)
    x_c = x + (X0 + tl.cast(c, tl.int64) * XC) + (m.to(tl.int64) * XN)[:, None] + q[None, :]
    y_c = y + (Y0 + tl.cast(c, tl.int64) * YC) + (m.to(tl.int64) * YN)[:, None] + o[None, :]
    x_slab = tl.cast(C, tl.int64) * XC
    y_slab = tl.cast(C, tl.int64) * YC
    for item in range(p * PER, tl.minimum((p + 1) * PER, ITEMS)):
        n0 = tl.cast(item * BM, tl.int64)
        n_ok = (item * BM + m < N)[:, None]
        accs = (tl.zeros((BM, BO), tl.float32),) * SLABS
        for e in tl.static_range(size(PAIRS)):
            src = x_c + (n0 * XN + at(PAIRS, e, 0) * x_slab)
            a = tl.load(src, mask=n_ok & (q < HI * WI)[None, :], other=0.0)
            acc = tl.dot(a, lead[e], accs[at(PAIRS, e, 1)])
            if size(at(PAIRS, e, 2)) > 1:
                acc = tl.dot(a, trail[e], acc)
            accs = accs[: at(PAIRS, e, 1)] + (acc,) + accs[at(PAIRS, e, 1) + 1 :]
        for s in tl.static_range(SLABS):
            if s == 0 or COMBINE != "cumulative":
                total = accs[s]
            else:
                total += accs[s]
            out = total
            if BIAS:
                out += tl.load(b + s * C + c).to(tl.float32)
            tl.store(y_c + (n0 * YN + s * y_slab), out.to(y.dtype.element_ty), mask=n_ok & (o < HO * WO)[None, :])

"""Which Triton kernel a call takes, and its tile."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from lightkernels._core import tuning
from lightkernels._core.triton_host import interpreting, pow2

if TYPE_CHECKING:
    from lightkernels.ops.multi_dwconv2d.op import Spec

UNROLL_TAPS = 128  # beyond, the kernels walk a table of taps
UNROLL_USES = 400  # products that one program writes out: code size and compile time
GRAD_TAPS = 96  # accumulators a program of the weight gradient holds
DOT_SHARED = 96 * 1024  # bytes of Toeplitz matrices a program may hold
DOT_REGISTERS = 112  # of a lane, for the accumulators of the weight gradient
DOT_HALO = 32
PLANE = 64  # pixels of an image that one matrix takes whole
DOT_WIDTH = 5  # narrower images fill a tile of 16 columns too badly
HALF = (torch.float16, torch.bfloat16)


class Config(NamedTuple):
    """A tile of the element-wise kernels: output rows, channels, columns, and the warps that share it."""

    th: int
    bc: int
    bw: int
    warps: int


class DotConfig(NamedTuple):
    """A tile of the tensor-core kernels: rows, rows an image takes of them, columns, halo columns, warps."""

    bm: int
    hp: int
    bn: int
    halo: int
    warps: int


class PlaneConfig(NamedTuple):
    """A tile of the small-image kernel: images, input pixels, output pixels, warps."""

    bm: int
    bq: int
    bo: int
    warps: int


class Group(NamedTuple):
    """Branches that read the same channels: all of them, or with `split` each by itself."""

    kernels: tuple[int, ...]
    dilations: tuple[int, ...]
    combine: str
    c: int
    x0: int
    y0: int
    w0: int

    @property
    def slabs(self) -> int:
        """Output slabs of c channels."""
        return 1 if self.combine == "add" else len(self.kernels)

    @property
    def reach(self) -> int:
        return max(d * (k // 2) for k, d in zip(self.kernels, self.dilations, strict=True))


class Grid(NamedTuple):
    """One output grid: which phase of the input gradient (None: the forward), its size, strides and start."""

    phase: tuple[int, int] | None
    ho: int
    wo: int
    sh: int
    sw: int
    start: int


def groups_of(spec: Spec) -> tuple[Group, ...]:
    groups: tuple[Group, ...] | None = spec.cache.get("triton groups")
    if groups is None:
        rows = spec.rows()
        if spec.split or len(rows) == 1:
            # One branch is the same under every combination: one name, one compiled kernel.
            groups = tuple(
                Group((r.kernel,), (r.dilation,), "add", r.channels, r.in_start, r.out_start, r.weight_start)
                for r in rows
                if r.channels
            )
        else:
            groups = (Group(spec.kernel_sizes, spec.dilations, spec.combine, spec.c, 0, 0, 0),)
        spec.cache["triton groups"] = groups
    return groups


def config_of(spec: Spec, kind: str) -> Config:
    """Tile of `fwd`, `bwd_x` or `bwd_w` in the element-wise kernels: the tuned one, else a heuristic."""
    config = tuning.tile("multi_dwconv2d", spec, kind, Config, lambda: _heuristic(spec, kind))
    return config._replace(th=_divisor(spec.ho, config.th)) if kind == "bwd_w" else config


def _divisor(n: int, limit: int) -> int:
    """The greatest divisor of n up to limit: the weight gradient takes whole blocks of rows only."""
    return max(t for t in range(1, max(1, min(n, limit)) + 1) if n % t == 0)


def products(group: Group) -> int:
    """Multiply-adds of one channel of one pixel."""
    if group.combine != "add":
        return sum(k * k for k in group.kernels)
    reach = [range(-d * (k // 2), d * (k // 2) + 1, d) for k, d in zip(group.kernels, group.dilations, strict=True)]
    return len({(y, x) for r in reach for y in r for x in r})


def _heuristic(spec: Spec, kind: str) -> Config:
    """NCHW: lanes along W, and as many output rows as unrolling allows, since each row saves loads. NHWC: 16 bytes of
    channels a lane; the weights differ from lane to lane there, so registers allow few rows.
    """
    groups = groups_of(spec)
    taps = max(map(products, groups))
    c = max(g.c for g in groups)
    high, wide = spec.ho, spec.wo
    if kind == "bwd_x":
        high, wide = -(-spec.h // spec.stride[0]), -(-spec.w // spec.stride[1])
    rows = max(1, min(high, 8, UNROLL_USES // taps))
    bw = min(32, pow2(wide))
    if kind == "bwd_w":
        rows = 1 if taps > GRAD_TAPS else _divisor(high, min(4, rows))
        if spec.layout == "nchw":
            return Config(rows, min(pow2(c), 32 // bw), bw, 1)
        bc = min(pow2(c), 64 if taps <= 49 else 32)
        return Config(rows, bc, max(1, 32 // bc), 1)
    if spec.layout == "nchw":
        return Config(rows, min(pow2(c), 32 // bw), bw, 1)
    bc = min(pow2(c), 64)
    outputs = 4 if len(groups[0].kernels) == 1 else 2
    return Config(min(rows, 2 if taps <= 9 else 1), bc, min(pow2(wide), max(1, 128 * outputs // bc)), 4)


def _dot_tile(spec: Spec, group: Group, strides: tuple[int, ...], h: int) -> bool:
    """Whether a call, and the tensor that it reads 7-fold, suit the tensor-core kernels at all."""
    return (
        spec.dtype in HALF
        and spec.layout == "nchw"
        and not spec.exact_nonfinite
        and max(group.kernels) > 1
        and strides[3] == 1
        and min(strides) > 0
        and (h + 2 * group.reach) * strides[2] < 2**31
        # The interpreter multiplies the bit patterns of bfloat16 there.
        and not (spec.dtype is torch.bfloat16 and interpreting())
    )


def dot_conv(
    spec: Spec, group: Group, grid: Grid, x_shape: tuple[int, ...], x_stride: tuple[int, ...]
) -> DotConfig | None:
    """The tensor-core tile of the forward, or of one phase of the input gradient; None if the shape does not suit."""
    sw = 1 if grid.phase is not None else spec.stride[1]
    wide = max(grid.wo, -(-x_shape[3] // sw))
    if not _dot_tile(spec, group, x_stride, x_shape[2]) or sw not in (1, 2, 4) or grid.wo < DOT_WIDTH:
        return None
    bm, bn = 64 if sw == 1 else 32, 16 if wide <= 16 else 32
    reach = group.reach if grid.phase is None else -(-(group.reach + 1) // spec.stride[1])
    halo = 0 if wide <= bn else max(16, pow2(2 * reach))
    matrices = _matrices(group, spec, grid.phase)
    if halo > DOT_HALO or 2 * matrices * (bn * sw + halo) * bn > DOT_SHARED:
        return None
    return DotConfig(bm, min(bm, pow2(grid.ho)), bn, halo, 2)


def _matrices(group: Group, spec: Spec, phase: tuple[int, int] | None) -> int:
    from lightkernels.ops.multi_dwconv2d import triton_dot

    rows = triton_dot.kernel_rows(group.kernels, group.dilations, group.combine, spec.stride, phase)
    return int(triton_dot.slot(rows, len(rows), 0))


def plane(spec: Spec, group: Group, back: bool, x_stride: tuple[int, ...]) -> PlaneConfig | None:
    """The tile of the small-image kernel, forward or back to the input; None if the images are not small enough."""
    (hi, wi), (ho, wo) = (spec.h, spec.w), (spec.ho, spec.wo)
    if back:
        (hi, wi), (ho, wo) = (ho, wo), (hi, wi)
    dense = x_stride[3] == 1 and x_stride[2] == wi
    if not dense or max(hi * wi, ho * wo) > PLANE or not _dot_tile(spec, group, x_stride, hi):
        return None
    slabs = 1 if back else group.slabs
    bm = max(16, min((64, 32, 16)[min(slabs, 3) - 1], pow2(spec.n)))
    return PlaneConfig(bm, max(16, pow2(hi * wi)), max(16, pow2(ho * wo)), 2)


def _rows_an_image(high: int, limit: int) -> int:
    """The power of two from 8 that leaves the fewest rows of a tile empty; the largest of those."""
    sizes = [hp for hp in (8, 16, 32, 64) if hp <= limit and hp < 2 * high] or [pow2(high)]
    return min(sizes, key=lambda hp: (-(-high // hp) * hp, -hp))


def dot_grad(
    spec: Spec, group: Group, first: int, last: int, g_stride: tuple[int, ...], x_stride: tuple[int, ...]
) -> DotConfig | None:
    """The tensor-core tile of the weight gradient of output slabs first..last; None if it does not suit."""
    sw = spec.stride[1]
    wide = max(spec.wo, -(-spec.w // sw))
    suits = _dot_tile(spec, group, x_stride, spec.h) and _dot_tile(spec, group, g_stride, spec.ho)
    if not suits or sw not in (1, 2, 4) or spec.wo < DOT_WIDTH:
        return None
    rows = max(group.kernels) if group.combine == "add" else sum(group.kernels[first:last])
    if group.combine == "add" and len(set(group.dilations)) > 1:
        rows = sum(group.kernels)
    for bn, warps in ((32, 2), (16, 2)):
        halo = 0 if wide <= bn else max(16, pow2(2 * group.reach))
        registers = rows * bn * (bn * sw + halo) // (32 * warps)
        narrow = wide <= 16 and bn == 32
        if not narrow and halo <= DOT_HALO and registers <= DOT_REGISTERS:
            return DotConfig(32, _rows_an_image(spec.ho, 32), bn, halo, warps)
    return None

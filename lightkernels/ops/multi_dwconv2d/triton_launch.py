"""Launches of the Triton kernels; imported with the first call, because the kernels need Triton."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
import triton.language as tl
from torch import Tensor

from lightkernels._core.triton_host import blocks, pow2
from lightkernels.ops.multi_dwconv2d import triton_config, triton_dot, triton_grad, triton_kernels, triton_plane
from lightkernels.ops.multi_dwconv2d.triton_config import Config, DotConfig, Grid, Group, config_of, groups_of

if TYPE_CHECKING:
    from lightkernels._core.triton_static import Launch
    from lightkernels.ops.multi_dwconv2d.op import Spec

TABLE_CHUNK = 16
PROGRAMS = 1024  # about; constants, so that the weight gradient's sums have one order everywhere
LAUNCH = {"num_stages": 1, "enable_fp_fusion": True}


@functools.lru_cache(maxsize=256)
def _tables(
    kernels: tuple[int, ...],
    dilations: tuple[int, ...],
    combine: str,
    stride: tuple[int, int],
    phase: tuple[int, int] | None,
    device: torch.device,
) -> tuple[Tensor, ...]:
    """On the device: int32 rows (slab, dy, dx), the slabs' first taps, rows (prefix, area, index), the taps' first."""
    taps = taps_of(kernels, dilations, combine, stride, phase)
    slabs = [0] if phase is not None or combine == "add" else range(len(kernels))
    starts = [sum(tap[0] < m for tap in taps) for m in slabs] + [len(taps)]
    terms = [(triton_kernels.prefix(kernels, m), kernels[m] ** 2, i) for tap in taps for m, i in tap[3]]
    term_starts = [0]
    for tap in taps:
        term_starts.append(term_starts[-1] + len(tap[3]))
    columns = ([tap[:3] for tap in taps], starts, terms, term_starts)
    return tuple(torch.tensor(column, dtype=torch.int32).to(device) for column in columns)


@functools.lru_cache(maxsize=1024)
def taps_of(
    kernels: tuple[int, ...],
    dilations: tuple[int, ...],
    combine: str,
    stride: tuple[int, int],
    phase: tuple[int, int] | None,
) -> tuple[tuple[int, int, int, tuple[tuple[int, int], ...]], ...]:
    if phase is None:
        return triton_kernels.forward_taps(kernels, dilations, combine)
    return triton_kernels.adjoint_taps(kernels, dilations, combine, stride, phase)


def _acc(dtype: torch.dtype) -> tuple[torch.dtype, tl.dtype]:
    return (torch.float64, tl.float64) if dtype is torch.float64 else (torch.float32, tl.float32)


def conv(spec: Spec, group: Group, kind: str, grid: Grid, x: Tensor, w: Tensor, b: Tensor | None, y: Tensor) -> None:
    """y's grid from x: the forward, or one phase of the input gradient."""
    b = w if b is None else b[group.y0 :]
    dot = triton_config.dot_conv(spec, group, grid, x.shape, x.stride())
    if dot is not None:
        return _conv_rows(spec, group, dot, grid, x, w, b, y)
    config = config_of(spec, kind)
    taps = taps_of(*group[:3], spec.stride, grid.phase)
    unrolled = len(taps) <= triton_config.UNROLL_TAPS
    packed = not unrolled or config.bc > config.bw
    start = group.w0
    if packed and taps:
        table = _tables(*group[:3], spec.stride, grid.phase, x.device)
        source, w = w, w.new_empty((len(taps), group.c), dtype=_acc(x.dtype)[0])
        programs = len(taps) * blocks((group.c, 128))
        triton_kernels.pack_weights[(programs,)](source, w, table[2], table[3], start, group.c, 128, num_warps=4)
        start = 0
    if unrolled:
        return _conv_taps(spec, group, config, grid, x, w, b, y, start, packed)
    return _conv_table(spec, group, config, grid, x, w, b, y, table)


def _places(spec: Spec, group: Group, grid: Grid, x: Tensor, y: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(starts in x and y), (sizes and strides) of the element-wise kernels."""
    xs, ys = x.stride(), y.stride()
    x0, y0 = (group.x0, group.y0) if grid.phase is None else (group.y0, group.x0)
    starts = (x0 * xs[1], y0 * ys[1] + grid.start)
    return starts, (group.c, *x.shape[2:], grid.ho, grid.wo, *xs, ys[0], ys[1], grid.sh, grid.sw)


def _conv_taps(
    spec: Spec, group: Group, config: Config, grid: Grid,
    x: Tensor, w: Tensor, b: Tensor, y: Tensor, start: int, packed: bool,
) -> None:  # fmt: skip
    starts, sizes = _places(spec, group, grid, x, y)
    th, bc, bw, warps = config
    programs = blocks((spec.n, 1), (group.c, bc), (grid.ho, th), (grid.wo, bw))
    triton_kernels.conv_taps[(programs,)](
        x, w, b, y, *starts, start, *sizes,
        KERNELS=group.kernels, DILATIONS=group.dilations, COMBINE=group.combine, STRIDE=spec.stride, PHASE=grid.phase,
        PACKED=packed, BIAS=spec.has_bias and grid.phase is None, EXACT=spec.exact_nonfinite, ACC=_acc(x.dtype)[1],
        TH=th, BC=bc, BW=bw, num_warps=warps, **LAUNCH,
    )  # fmt: skip


def _conv_table(
    spec: Spec, group: Group, config: Config, grid: Grid,
    x: Tensor, w: Tensor, b: Tensor, y: Tensor, table: tuple[Tensor, ...],
) -> None:  # fmt: skip
    starts, sizes = _places(spec, group, grid, x, y)
    back = grid.phase is not None
    programs = blocks((spec.n, 1), (group.c, config.bc), (grid.ho, 1), (grid.wo, config.bw))
    triton_kernels.conv_table[(programs,)](
        x, w, b, y, table[0], table[1], *starts, *sizes,
        SLABS=1 if back else group.slabs, BACK=back, CUMULATIVE=group.combine == "cumulative" and not back,
        SH=1 if back else spec.stride[0], SW=1 if back else spec.stride[1],
        BIAS=spec.has_bias and not back, EXACT=spec.exact_nonfinite, ACC=_acc(x.dtype)[1],
        BC=config.bc, BW=config.bw, num_warps=config.warps, **LAUNCH,
    )  # fmt: skip


def plane(spec: Spec, group: Group, back: bool, x: Tensor, w: Tensor, b: Tensor | None, y: Tensor) -> bool:
    """y from x by one matrix an image, or from the gradient x back; False if the images are too large for that."""
    tile = triton_config.plane(spec, group, back, x.stride())
    if tile is None:
        return False
    xs, ys = x.stride(), y.stride()
    x0, y0 = (group.y0, group.x0) if back else (group.x0, group.y0)
    items = blocks((spec.n, tile.bm))
    per = max(1, min(8, items * group.c // PROGRAMS))
    triton_plane.conv_plane[(group.c * blocks((items, per)),)](
        x, w, w if b is None else b[group.y0 :], y, x0 * xs[1], y0 * ys[1], group.w0, spec.n, group.c, xs[0], ys[0],
        items, per, HI=x.shape[2], WI=x.shape[3], HO=y.shape[2], WO=y.shape[3], XC=xs[1], YC=ys[1],
        KERNELS=group.kernels, DILATIONS=group.dilations, COMBINE=group.combine, STRIDE=spec.stride, BACK=back,
        BIAS=spec.has_bias and not back, BM=tile.bm, BQ=tile.bq, BO=tile.bo, num_warps=tile.warps, **LAUNCH,
    )  # fmt: skip
    return True


def _items(n: int, ho: int, wo: int, tile: DotConfig) -> int:
    """Tiles of a channel."""
    return blocks((n, tile.bm // tile.hp), (ho, tile.hp), (wo, tile.bn))


def _conv_rows(
    spec: Spec, group: Group, tile: DotConfig, grid: Grid, x: Tensor, w: Tensor, b: Tensor, y: Tensor
) -> None:
    (x0, y0), _ = _places(spec, group, grid, x, y)
    xs, ys = x.stride(), y.stride()
    taps = {"KERNELS": group.kernels, "DILATIONS": group.dilations, "COMBINE": group.combine}
    taps |= {"STRIDE": spec.stride, "PHASE": grid.phase}
    rows = kernel_rows(*taps.values())
    bk = tile.bn * (1 if grid.phase is not None else spec.stride[1])
    matrices = w.new_empty((group.c, triton_dot.slot(rows, len(rows), 0), bk + tile.halo, tile.bn))
    if rows:
        triton_dot.build_matrices[(group.c * len(rows),)](
            w, matrices, group.w0, group.c, **taps, BN=tile.bn, BK=bk, HALO=tile.halo, num_warps=4, **LAUNCH
        )
    items = _items(spec.n, grid.ho, grid.wo, tile)
    # Enough tiles a program to pay for its matrices, enough programs to fill a device.
    per = max(1, min(8, items * group.c // PROGRAMS))
    triton_dot.conv_rows[(group.c * blocks((items, per)),)](
        x, matrices, b, y, x0, y0, spec.n, group.c, xs[0], ys[0], items, per,
        HI=x.shape[2], WI=x.shape[3], HO=grid.ho, WO=grid.wo, XC=xs[1], XH=xs[2], YC=ys[1], YH=grid.sh, YW=grid.sw,
        **taps, BIAS=spec.has_bias and grid.phase is None,
        BM=tile.bm, HP=tile.hp, BN=tile.bn, HALO=tile.halo, num_warps=tile.warps, **LAUNCH,
    )  # fmt: skip


@functools.lru_cache(maxsize=1024)
def kernel_rows(*taps: Any) -> tuple[Any, ...]:
    return triton_dot.kernel_rows(*taps)


def grad(spec: Spec, g: Tensor, x: Tensor, gw: Tensor) -> None:
    """The packed weight gradient: partial sums of every group, then one sum over the parts."""
    plans = [(group, *plan) for group in groups_of(spec) for plan in _grad_plans(spec, group, g, x)]
    parts = max(parts for *_, parts in plans)
    part = x.new_empty((parts, gw.numel()), dtype=_acc(x.dtype)[0])
    if any(count != parts for *_, count in plans):
        part.zero_()
    for group, first, last, tile, items, count in plans:
        if isinstance(tile, DotConfig):
            _grad_rows(spec, group, tile, g, x, part, first, last, items, count)
        else:
            _grad_taps(spec, group, tile, g, x, part, first, last, items, count)
    triton_grad.sum_parts[(blocks((gw.numel(), 128)),)](
        part, gw, gw.numel(), parts, BP=min(32, pow2(parts)), BE=128, num_warps=4, **LAUNCH
    )


def _grad_plans(spec: Spec, group: Group, g: Tensor, x: Tensor) -> list[tuple[int, int, Config | DotConfig, int, int]]:
    """Launches of one group as (first slab, last slab, tile, items, parts): all slabs at once if registers allow."""
    config = config_of(spec, "bwd_w")
    whole = [(0, group.slabs)]
    single = [(m, m + 1) for m in range(group.slabs)]
    for ranges in (whole, single):
        tiles = [triton_config.dot_grad(spec, group, *slabs, g.stride(), x.stride()) for slabs in ranges]
        if None not in tiles:
            break
    else:
        ranges = whole if triton_config.products(group) <= triton_config.GRAD_TAPS else single
        tiles = [None] * len(ranges)
    plans = []
    for (first, last), dot in zip(ranges, tiles, strict=True):
        if dot is not None:
            items = _items(spec.n, spec.ho, spec.wo, dot)
            tile, most = dot, max(1, PROGRAMS // group.c)
        else:
            items = blocks((spec.n, 1), (spec.ho, config.th), (spec.wo, config.bw))
            tile, most = config, max(1, PROGRAMS // blocks((group.c, config.bc)))
        per = -(-items // max(1, min(items // 4, most)))
        plans.append((first, last, tile, items, -(-items // per)))
    return plans


def _grad_rows(
    spec: Spec, group: Group, tile: DotConfig, g: Tensor, x: Tensor, part: Tensor,
    first: int, last: int, items: int, parts: int,
) -> None:  # fmt: skip
    gs, xs = g.stride(), x.stride()
    triton_dot.grad_rows[(parts * group.c,)](
        g, x, part, group.y0 * gs[1], group.x0 * xs[1], group.w0, spec.n, group.c, gs[0], xs[0],
        items, -(-items // parts), part.shape[1],
        HI=spec.h, WI=spec.w, HO=spec.ho, WO=spec.wo, GC=gs[1], GH=gs[2], XC=xs[1], XH=xs[2],
        KERNELS=group.kernels, DILATIONS=group.dilations, COMBINE=group.combine, STRIDE=spec.stride,
        FIRST=first, LAST=last, BM=tile.bm, HP=tile.hp, BN=tile.bn, HALO=tile.halo, num_warps=tile.warps, **LAUNCH,
    )  # fmt: skip


def _grad_taps(
    spec: Spec, group: Group, config: Config, g: Tensor, x: Tensor, part: Tensor,
    first: int, last: int, items: int, parts: int,
) -> None:  # fmt: skip
    gs, xs = g.stride(), x.stride()
    starts = (group.y0 * gs[1], group.x0 * xs[1], group.w0, group.c)
    sizes = (*x.shape[2:], spec.ho, spec.wo, *gs, *xs, items, -(-items // parts), part.shape[1])
    programs = parts * blocks((group.c, config.bc))
    rest = {"EXACT": spec.exact_nonfinite, "ACC": _acc(x.dtype)[1], "BC": config.bc, "BW": config.bw}
    rest |= {"num_warps": config.warps, **LAUNCH}
    taps = taps_of(*group[:3], spec.stride, None)
    counts = [sum(tap[0] == m for tap in taps) for m in range(group.slabs)]
    if sum(counts[first:last]) <= triton_config.GRAD_TAPS:
        triton_grad.grad_taps[(programs,)](
            g, x, part, *starts, *sizes,
            KERNELS=group.kernels, DILATIONS=group.dilations, COMBINE=group.combine, STRIDE=spec.stride,
            FIRST=first, LAST=last, TH=config.th, **rest,
        )  # fmt: skip
        return
    table, _, terms, term_starts = _tables(*group[:3], spec.stride, None, x.device)
    for m in range(first, last):
        tap = sum(counts[:m])
        end = len(group.kernels) if group.combine == "cumulative" else m + 1
        triton_grad.grad_table[(programs * blocks((counts[m], TABLE_CHUNK)),)](
            g, x, part, table, terms, term_starts, *starts, *sizes, tap, tap + counts[m], m, end,
            SH=spec.stride[0], SW=spec.stride[1], CHUNK=TABLE_CHUNK, **rest,
        )  # fmt: skip


def recorded(spec: Spec, kind: str) -> list[Launch]:
    """The launches of `fwd`, `bwd_x` or `bwd_w`, noted on meta tensors instead of run."""
    from lightkernels._core.triton_static import record
    from lightkernels.ops.multi_dwconv2d import triton

    def meta(shape: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        return torch.empty_strided(shape, stride, dtype=spec.dtype, device="meta")

    x, y, w = meta(spec.x_shape, spec.x_stride), meta(spec.y_shape, spec.y_stride), meta(spec.weight_shape, (1,))
    b = meta((spec.c_out,), (1,)) if spec.has_bias else None
    with record(triton_kernels, triton_grad, triton_dot, triton_plane) as launches:
        getattr(triton, kind)(spec, *{"fwd": (x, w, b), "bwd_x": (y, w), "bwd_w": (y, x)}[kind])
    return launches

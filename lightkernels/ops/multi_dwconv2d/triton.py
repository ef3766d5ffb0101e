"""The Triton backend: which kernels a call takes, their tiles and their launches.

Importing this module does not import Triton; `why_not` does, once, and the kernels come with the first launch.
"""

from __future__ import annotations

import functools
import importlib.util
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lightkernels.ops.multi_dwconv2d.op import Spec

UNROLL_TAPS = 128  # beyond, the kernels walk a table of taps
UNROLL_USES = 400  # products that one program writes out: code size and compile time
GRAD_TAPS = 96  # accumulators a program of the weight gradient holds
TABLE_CHUNK = 16
GRID_LIMIT = 2**31 - 1
PROGRAMS = 1024  # of the weight gradient's first stage, about; a constant, so that sums have one order everywhere
LAUNCH = {"num_stages": 1, "enable_fp_fusion": True}


class Config(NamedTuple):
    """A tile: output rows, channels, columns, and the warps that share it."""

    th: int
    bc: int
    bw: int
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


@functools.cache
def _missing() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    try:
        import triton  # noqa: F401
    except Exception as error:  # a broken installation must not break the others
        return f"Triton cannot be imported: {error}"
    return None


@functools.cache
def _interpreting() -> bool:
    from triton import knobs

    return bool(knobs.runtime.interpret)


@functools.cache
def _kernels() -> tuple[ModuleType, ModuleType]:
    from lightkernels.ops.multi_dwconv2d import triton_grad, triton_kernels

    return triton_kernels, triton_grad


def why_not(spec: Spec) -> str | None:
    if spec.device not in ("cuda", "cpu"):
        return f"the tensors are on {spec.device}, not on a CUDA device"
    missing = _missing()
    if missing is not None:
        return missing
    if spec.device == "cpu" and not _interpreting():
        return "the tensors are on the CPU and Triton's interpreter is off (TRITON_INTERPRET=1)"
    if spec.device == "cuda" and _interpreting():
        return "Triton's interpreter is on (TRITON_INTERPRET=1); it is for CPU tensors here"
    if spec.device == "cuda" and torch.version.hip is not None:
        return "the kernels have been compiled for NVIDIA devices only, not for ROCm"
    if spec.n * max(spec.c, spec.c_out) * spec.h * -(-spec.w // 16) > GRID_LIMIT:
        return f"the call needs more than {GRID_LIMIT} programs"
    return None


def config_text(spec: Spec) -> str:
    return "; ".join(
        f"{kind} {config.th} rows x {config.bc} channels x {config.bw} columns, {config.warps} warps"
        for kind in ("fwd", "bwd_x", "bwd_w")
        for config in [config_of(spec, kind)]
    )


def _pow2(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def config_of(spec: Spec, kind: str) -> Config:
    """Tile of `fwd`, `bwd_x` or `bwd_w`, without regard to tuned files.

    NCHW: lanes along W, and as many output rows as unrolling allows, since each row saves loads. NHWC: 16 bytes of
    channels a lane; the weights differ from lane to lane there, so registers allow few rows.
    """
    group, *_ = groups = _groups(spec)
    taps = max(map(_count, groups))
    wide = _pow2(spec.wo if kind != "bwd_x" else -(-spec.w // spec.stride[1]))
    high = spec.ho if kind != "bwd_x" else -(-spec.h // spec.stride[0])
    c = max(g.c for g in groups)
    if kind == "bwd_w":
        limit = 1 if taps > GRAD_TAPS else max(1, min(4, UNROLL_USES // taps))
        rows = max(t for t in range(1, min(high, limit) + 1) if high % t == 0)
        if spec.layout == "nchw":
            bw = min(32, wide)
            return Config(rows, min(_pow2(c), 32 // bw), bw, 1)
        bc = min(_pow2(c), 64 if taps <= 49 else 32)
        return Config(rows, bc, max(1, 32 // bc), 1)
    rows = max(1, min(high, 8, UNROLL_USES // taps))
    if spec.layout == "nchw":
        bw = min(32, wide)
        return Config(rows, min(_pow2(c), 32 // bw), bw, 1)
    bc = min(_pow2(c), 64)
    outputs = 4 if len(group.kernels) == 1 else 2
    return Config(min(rows, 2 if taps <= 9 else 1), bc, min(wide, max(1, 128 * outputs // bc)), 4)


def _groups(spec: Spec) -> tuple[Group, ...]:
    groups = spec.cache.get("triton")
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
        spec.cache["triton"] = groups
    return groups  # type: ignore[no-any-return]


def _count(group: Group) -> int:
    """Products an output costs."""
    if group.combine == "add":
        return len(_kernels()[0].forward_taps(group.kernels, group.dilations, "add"))
    return sum(k * k for k in group.kernels)


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
    tk = _kernels()[0]
    if phase is None:
        taps = tk.forward_taps(kernels, dilations, combine)
    else:
        taps = tk.adjoint_taps(kernels, dilations, combine, stride, phase)
    slabs = [0] if phase is not None or combine == "add" else range(len(kernels))
    starts = [sum(tap[0] < m for tap in taps) for m in slabs] + [len(taps)]
    terms = [(tk.prefix(kernels, m), kernels[m] ** 2, i) for tap in taps for m, i in tap[3]]
    term_starts = [0]
    for tap in taps:
        term_starts.append(term_starts[-1] + len(tap[3]))
    columns = ([tap[:3] for tap in taps], starts, terms, term_starts)
    return tuple(torch.tensor(column, dtype=torch.int32).to(device) for column in columns)


def _guard(device: torch.device) -> AbstractContextManager[Any]:
    if device.type != "cuda" or torch.cuda.current_device() == device.index:
        return nullcontext()
    return torch.cuda.device(device)


def _acc(dtype: torch.dtype) -> tuple[torch.dtype, Any]:
    import triton.language as tl

    return (torch.float64, tl.float64) if dtype is torch.float64 else (torch.float32, tl.float32)


def _blocks(*pairs: tuple[int, int]) -> int:
    total = 1
    for size, block in pairs:
        total *= -(-size // block)
    return total


class Grid(NamedTuple):
    """One output grid: which phase of the input gradient (None: the forward), its size, strides and start."""

    phase: tuple[int, int] | None
    ho: int
    wo: int
    sh: int
    sw: int
    start: int


def _conv(
    spec: Spec, group: Group, config: Config, grid: Grid, x: Tensor, w: Tensor, b: Tensor | None, y: Tensor
) -> None:
    """One launch: y's grid from x, forward or one phase backward."""
    tk = _kernels()[0]
    torch_acc, acc = _acc(x.dtype)
    back = grid.phase is not None
    taps = (group.kernels, group.dilations, group.combine)
    count = len(tk.adjoint_taps(*taps, spec.stride, grid.phase) if back else tk.forward_taps(*taps))
    xs, ys = x.stride(), y.stride()
    th, bc, bw, warps = config
    unrolled = count <= UNROLL_TAPS
    packed = not unrolled or bc > bw
    x0, y0 = (group.y0, group.x0) if back else (group.x0, group.y0)
    b = w if b is None else b[group.y0 :]
    if packed:
        tables = _tables(*taps, spec.stride, grid.phase, x.device)
        source, w = w, w.new_empty((max(count, 1), group.c), dtype=torch_acc)
        blocks = _blocks((group.c, 128))
        if count:
            tk.pack_weights[(count * blocks,)](source, w, tables[2], tables[3], group.w0, group.c, 128, num_warps=4)
    tail = (
        x0 * xs[1],
        y0 * ys[1] + grid.start,
        *(() if not unrolled else (0 if packed else group.w0,)),
        group.c,
        *x.shape[2:],
        grid.ho,
        grid.wo,
        *xs,
        ys[0],
        ys[1],
        grid.sh,
        grid.sw,
    )
    bias = spec.has_bias and not back
    if unrolled:
        programs = _blocks((spec.n, 1), (group.c, bc), (grid.ho, th), (grid.wo, bw))
        tk.conv_taps[(programs,)](
            x, w, b, y, *tail,
            KERNELS=group.kernels, DILATIONS=group.dilations, COMBINE=group.combine, STRIDE=spec.stride,
            PHASE=grid.phase, PACKED=packed, BIAS=bias, EXACT=spec.exact_nonfinite, ACC=acc,
            TH=th, BC=bc, BW=bw, num_warps=warps, **LAUNCH,
        )  # fmt: skip
        return
    programs = _blocks((spec.n, 1), (group.c, bc), (grid.ho, 1), (grid.wo, bw))
    tk.conv_table[(programs,)](
        x, w, b, y, tables[0], tables[1], *tail,
        SLABS=1 if back or group.combine == "add" else len(group.kernels), BACK=back,
        CUMULATIVE=group.combine == "cumulative" and not back,
        SH=1 if back else spec.stride[0], SW=1 if back else spec.stride[1],
        BIAS=bias, EXACT=spec.exact_nonfinite, ACC=acc, BC=bc, BW=bw, num_warps=warps, **LAUNCH,
    )  # fmt: skip


def fwd(spec: Spec, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    y = x.new_empty_strided(spec.y_shape, spec.y_stride)
    if y.numel() == 0:
        return y
    w, b = w.contiguous(), None if b is None else b.contiguous()
    grid = Grid(None, spec.ho, spec.wo, y.stride(2), y.stride(3), 0)
    with _guard(x.device):
        for group in _groups(spec):
            _conv(spec, group, config_of(spec, "fwd"), grid, x, w, b, y)
    return y


def bwd_x(spec: Spec, g: Tensor, w: Tensor) -> Tensor:
    gx = g.new_empty_strided(spec.x_shape, spec.dense_x_stride)
    if gx.numel() == 0:
        return gx
    w = w.contiguous()
    sh, sw = spec.stride
    with _guard(g.device):
        for group in _groups(spec):
            for a in range(min(sh, spec.h)):
                for e in range(min(sw, spec.w)):
                    start = a * gx.stride(2) + e * gx.stride(3)
                    size = _blocks((spec.h - a, sh)), _blocks((spec.w - e, sw))
                    grid = Grid((a, e), *size, sh * gx.stride(2), sw * gx.stride(3), start)
                    _conv(spec, group, config_of(spec, "bwd_x"), grid, g, w, None, gx)
    return gx


def bwd_w(spec: Spec, g: Tensor, x: Tensor) -> Tensor:
    gw = x.new_empty(spec.weight_shape)
    if gw.numel() == 0:
        return gw
    if g.numel() == 0:
        return gw.zero_()
    _, tg = _kernels()
    torch_acc, _ = _acc(x.dtype)
    config = config_of(spec, "bwd_w")
    items = _blocks((spec.n, 1), (spec.ho, config.th), (spec.wo, config.bw))
    channel_blocks = _blocks((max(group.c for group in _groups(spec)), config.bc))
    parts = max(1, min(items // 4, PROGRAMS // channel_blocks))
    per = -(-items // parts)
    parts = -(-items // per)
    part = x.new_empty((parts, gw.numel()), dtype=torch_acc)
    with _guard(x.device):
        for group in _groups(spec):
            _grad(spec, group, config, g, x, part, items, per)
        tg.sum_parts[(_blocks((gw.numel(), 128)),)](
            part, gw, gw.numel(), parts, BP=min(32, _pow2(parts)), BE=128, num_warps=4, **LAUNCH
        )
    return gw


def _grad(spec: Spec, group: Group, config: Config, g: Tensor, x: Tensor, part: Tensor, items: int, per: int) -> None:
    """First stage of one group's weight gradient: `part` at the group's weights."""
    tk, tg = _kernels()
    acc = _acc(x.dtype)[1]
    gs, xs = g.stride(), x.stride()
    taps = tk.forward_taps(group.kernels, group.dilations, group.combine)
    slabs = 1 if group.combine == "add" else len(group.kernels)
    counts = [sum(tap[0] == m for tap in taps) for m in range(slabs)]
    starts = (group.y0 * gs[1], group.x0 * xs[1], group.w0, group.c)
    sizes = (*x.shape[2:], spec.ho, spec.wo, *gs, *xs)
    programs = len(part) * _blocks((group.c, config.bc))
    exact = {"EXACT": spec.exact_nonfinite, "ACC": acc, "BC": config.bc, "BW": config.bw, "num_warps": config.warps}
    if max(counts) <= GRAD_TAPS:
        whole = len(taps) <= GRAD_TAPS
        for first, last in [(0, slabs)] if whole else [(m, m + 1) for m in range(slabs)]:
            tg.grad_taps[(programs,)](
                g, x, part, *starts, *sizes, items, per, part.shape[1],
                KERNELS=group.kernels, DILATIONS=group.dilations, COMBINE=group.combine, STRIDE=spec.stride,
                FIRST=first, LAST=last, TH=config.th, **exact, **LAUNCH,
            )  # fmt: skip
        return
    table, _, terms, term_starts = _tables(*group[:3], spec.stride, None, x.device)
    tap = 0
    for m, count in enumerate(counts):
        end = len(group.kernels) if group.combine == "cumulative" else m + 1
        tg.grad_table[(programs * _blocks((count, TABLE_CHUNK)),)](
            g, x, part, table, terms, term_starts, *starts, *sizes, items, per, part.shape[1],
            tap, tap + count, m, end, SH=spec.stride[0], SW=spec.stride[1], CHUNK=TABLE_CHUNK, **exact, **LAUNCH,
        )  # fmt: skip
        tap += count

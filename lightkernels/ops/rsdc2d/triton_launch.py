"""Launches of the Triton kernels of `rsdc2d`; imported with the first call, because the kernels need Triton."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton.language as tl
from torch import Tensor

from lightkernels._core.triton_host import blocks, dot_mode, pow2
from lightkernels.ops.rsdc2d import triton_config, triton_direct, triton_dot, triton_pack
from lightkernels.ops.rsdc2d.triton_config import NARROW, PROGRAMS, direct_tile, pixels, sides

if TYPE_CHECKING:
    from lightkernels._core.triton_static import Launch
    from lightkernels.ops.rsdc2d.op import Spec

SMALL = {"num_warps": 4, "num_stages": 1}


def _acc(dtype: torch.dtype) -> tuple[torch.dtype, tl.dtype]:
    return (torch.float64, tl.float64) if dtype is torch.float64 else (torch.float32, tl.float32)


def _strides(t: Tensor, name: str) -> dict[str, int]:
    return dict(zip((f"{name}N", f"{name}C", f"{name}H", f"{name}W"), t.stride(), strict=True))


def _window(spec: Spec, steps: bool = True) -> dict[str, int]:
    """The window's numbers, with the stride unless there are ``steps`` of another kind."""
    (dh, dw), (ph, pw) = spec.dilation, spec.padding
    found = {"T": spec.taps, "K": spec.kernel_size, "DH": dh, "DW": dw, "PH": ph, "PW": pw}
    return {**found, "SH": spec.stride[0], "SW": spec.stride[1]} if steps else found


def _sizes(x: Tensor, y: Tensor) -> dict[str, int]:
    return {"HI": x.shape[2], "WI": x.shape[3], "HO": y.shape[2], "WO": y.shape[3]}


def conv(spec: Spec, kind: str, x: Tensor, w: Tensor, b: Tensor | None, taps: Tensor, y: Tensor) -> None:
    """The forward y from x, or the input gradient y from the output gradient x."""
    back = kind == "bwd_x"
    cin, cout = sides(spec, back)
    common: dict[str, Any] = {**_sizes(x, y), **_strides(x, "X"), **_strides(y, "Y"), "GROUPS": spec.groups}
    common |= {"CIN": cin, "COUT": cout, "BACK": back, "BIAS": b is not None, "ACC": _acc(x.dtype)[1]}
    bias = w if b is None else b
    if triton_config.direct(spec):
        tile = direct_tile(spec, kind)
        m = y.shape[0] * y.shape[2] * y.shape[3]
        programs = blocks((m, tile.rows * tile.pixels), (spec.groups * cout, tile.bn))
        triton_direct.conv_direct[(programs,)](
            x, w, bias, y, taps, m, **common, **_window(spec), EACH=spec.c_out // spec.sets, EXACT=spec.exact_nonfinite,
            LAST=tile.bn > 1, ROWS=tile.rows, PIXELS=tile.pixels, BN=tile.bn, num_warps=tile.warps, num_stages=1,
        )  # fmt: skip
        return
    dot = triton_config.conv_tile(spec, kind)
    packed = w.new_empty((w.numel(),))
    order = {"CIN": cin, "COUT": cout, "GROUPS": spec.groups, "T": spec.taps, "BACK": back}
    triton_pack.pack[(blocks((w.numel(), 1024)),)](w, packed, w.numel(), **order, BE=1024, **SMALL)
    count = triton_config.phases(spec) if back else 1
    table, counts = taps, taps
    if count > 1:
        table = taps.new_empty((count, spec.sets, spec.taps, 3), dtype=torch.int32)
        counts = taps.new_empty((count, spec.sets), dtype=torch.int32)
        triton_pack.phase_table[(count * spec.sets,)](
            taps, table, counts, spec.sets, **_window(spec), BT=pow2(spec.taps), **SMALL
        )
    steps = dict(zip(("VH", "VW", "SH", "SW"), (*spec.stride, 1, 1) if back else (1, 1, *spec.stride), strict=True))
    m = pixels(spec, back)
    programs = blocks((m, dot.bm), (cout, dot.bn)) * spec.groups * count
    triton_dot.conv_dot[(programs,)](
        x, packed, bias, y, table, counts, m, spec.taps, **common, **_window(spec, False), **steps, SETS=spec.sets,
        TABLE=count > 1, FLAT=cin < NARROW, MODE=dot_mode(x.dtype), BM=dot.bm, BN=dot.bn, BK=dot.bk,
        num_warps=dot.warps, num_stages=dot.stages,
    )  # fmt: skip


def grad(spec: Spec, g: Tensor, x: Tensor, taps: Tensor, gw: Tensor) -> None:
    """The weight gradient: partial sums over runs of pixels, then one sum over the parts."""
    cin, cout = sides(spec, False)
    m = pixels(spec, False)
    common: dict[str, Any] = {**_sizes(x, g), **_strides(g, "G"), **_strides(x, "X"), **_window(spec)}
    common |= {"GROUPS": spec.groups, "CIN": cin, "COUT": cout, "ACC": _acc(x.dtype)[1]}
    if triton_config.direct(spec):
        tile = direct_tile(spec, "bwd_w")
        each = blocks((spec.c_out, tile.bn), (spec.taps, tile.taps)) * cin
        items = blocks((m, tile.pixels))
        per, parts = _runs(items, each)
        part = x.new_empty((parts, spec.taps, spec.c_out * cin), dtype=_acc(x.dtype)[0])
        triton_direct.grad_direct[(each * parts,)](
            g, x, part, taps, m, items, per, **common, EACH=spec.c_out // spec.sets, EXACT=spec.exact_nonfinite,
            LAST=tile.bn > 1, PIXELS=tile.pixels, BN=tile.bn, TAPS=tile.taps, num_warps=tile.warps, num_stages=1,
        )  # fmt: skip
    else:
        dot = triton_config.grad_tile(spec)
        each = blocks((cout, dot.bo), (cin, dot.bc), (spec.taps, dot.taps)) * spec.groups
        items = blocks((m, dot.bm))
        per, parts = _runs(items, each)
        part = x.new_empty((parts, spec.taps, spec.c_out * cin), dtype=_acc(x.dtype)[0])
        triton_dot.grad_dot[(each * parts,)](
            g, x, part, taps, m, items, per, **common, SETS=spec.sets, MODE=dot_mode(x.dtype),
            BM=dot.bm, BO=dot.bo, BC=dot.bc, TAPS=dot.taps, num_warps=dot.warps, num_stages=dot.stages,
        )  # fmt: skip
    size = spec.c_out * cin
    triton_pack.sum_taps[(blocks((size, 128)) * spec.taps,)](
        part, gw, parts, size, T=spec.taps, BP=min(32, pow2(parts)), BE=128, **SMALL
    )


def _runs(items: int, each: int) -> tuple[int, int]:
    """Items a program, and programs that share the items of one block of the result."""
    per = -(-items // max(1, min(items // 4, PROGRAMS // each)))
    return per, -(-items // per)


def recorded(spec: Spec, kind: str) -> list[Launch]:
    """The launches of `fwd`, `bwd_x` or `bwd_w`, noted on meta tensors instead of run."""
    from lightkernels._core.triton_static import record
    from lightkernels.ops.rsdc2d import triton

    def meta(shape: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        return torch.empty_strided(shape, stride, dtype=spec.dtype, device="meta")

    x, y = meta(spec.x_shape, spec.x_stride), meta(spec.y_shape, spec.y_stride)
    w = torch.empty(spec.weight_shape, dtype=spec.dtype, device="meta")
    b = meta((spec.c_out,), (1,)) if spec.has_bias else None
    taps = torch.empty((spec.sets, spec.taps), dtype=torch.int64, device="meta")
    with record(triton_dot, triton_direct, triton_pack) as launches:
        getattr(triton, kind)(spec, *{"fwd": (x, w, b), "bwd_x": (y, w), "bwd_w": (y, x)}[kind], taps)
    return launches

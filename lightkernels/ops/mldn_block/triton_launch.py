"""Launches of the Triton kernels of `mldn_block`; imported with the first call, because the kernels need Triton."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton.language as tl
from torch import Tensor

from lightkernels._core.triton_host import blocks, dot_mode, pow2
from lightkernels.ops.mldn_block import composite, triton_forms, triton_kernels
from lightkernels.ops.mldn_block.spec import Inputs, Outputs, Spec

if TYPE_CHECKING:
    from lightkernels._core.triton_static import Launch

SMALL = {"num_warps": 4, "num_stages": 1}


def strides(spec: Spec, name: str, channels: int, layout: str | None = None) -> dict[str, int]:
    """Of images, channels and pixels of a dense tensor in the call's layout, or in another."""
    pixels, last = spec.h * spec.w, (layout or spec.layout) == "nhwc"
    return {f"{name}N": channels * pixels, f"{name}C": 1 if last else pixels, f"{name}Q": channels if last else 1}


class Tiles:
    """Pixels of a program, which both kernels share; columns and channels of a step."""

    def __init__(self, spec: Spec) -> None:
        wide = spec.dtype.itemsize == 8
        self.bm = 32 if wide else 64 if spec.n * spec.h * spec.w < 2**15 else 128
        self.mid = min(64 if wide else 128, max(16, pow2(spec.mid)))
        self.kappa = min(64 if wide else 128, max(16, pow2(spec.kappa)))
        self.bk = 16 if wide else 32
        self.warps = 8 if self.bm == 128 else 4  # of what also reads norms; the k x k's forward has room for 4


class Block:
    """One call: what its launches have in common."""

    def __init__(
        self, spec: Spec, t: Inputs, y: Tensor, mid: Tensor | None = None, offsets: list[int] | None = None
    ) -> None:
        """``mid``: what a forward kept of the 1x1's results, if it did. ``offsets``: where a layer has a frame of its
        own in a path of ``y``, if it has."""
        self.spec, self.t, self.y, self.tiles = spec, t, y, Tiles(spec)
        self.offsets, self.pitch = offsets or [0] * spec.layers, y.shape[1] // spec.paths
        self.m = spec.n * spec.h * spec.w
        acc = {torch.float64: tl.float64}.get(spec.acc_dtype, tl.float32)
        self.common: dict[str, Any] = {"PATHS": spec.paths, "MID": spec.mid, "EPS": spec.eps, "ACC": acc}
        self.common |= {
            "STATS": spec.batch_stats,
            "MODE": dot_mode(spec.dtype),
            "BM": self.tiles.bm,
            "BK": self.tiles.bk,
        }
        self.options = {"num_warps": self.tiles.warps, "num_stages": 3}
        channels = spec.paths * spec.mid
        self.mid_stride = strides(spec, "T", channels, spec.mid_layout)
        self.y_stride = tuple(strides(spec, "Y", y.shape[1]).values())
        size = self.m * channels
        if mid is None:
            mid = y.new_empty(spec.mid_shape) if spec.keep else y.new_empty((size,))
            mid[spec.layers * size :].zero_()  # version 2: what the native backward reads, on the CPU alone
        self.mid = mid
        self.size = size if spec.keep else 0
        count = blocks((self.m, self.tiles.bm))
        widest = max(spec.mid, spec.kappa, spec.widths[-2] if spec.version == 2 else 0)
        self.part = y.new_empty((count, 2, spec.paths * widest), dtype=spec.acc_dtype)
        # Cells of the window where sets differ from filter to filter, else each path's own.
        self.dense = spec.sets > 1
        self.count = spec.kernel_size**2 if self.dense else spec.taps
        self.weight3 = self._spread()
        self.weight_sfr = self._reach() if spec.index_groups and spec.version == 2 else t.weight_sfr

    def _spread(self) -> Tensor:
        spec, t = self.spec, self.t
        total = spec.layers * spec.paths * self.count * spec.kappa * spec.mid
        out = self.y.new_empty((total,))
        triton_kernels.spread[(blocks((total, 1024)),)](
            t.weight3, t.taps if self.dense else t.weight3, out, total, COUNT=self.count, KAPPA=spec.kappa,
            MID=spec.mid, GROUPS=spec.groups, T=spec.taps, SETS=max(spec.sets, 1), DENSE=self.dense, BE=1024, **SMALL,
        )  # fmt: skip
        return out

    def _reach(self) -> Tensor:
        spec, t = self.spec, self.t
        out: Tensor = t.weight_sfr.new_empty((spec.columns * spec.kappa,)).zero_()
        total = t.index_sfr.shape[0]
        triton_forms.reach[(blocks((total, 256)),)](
            t.weight_sfr, t.index_sfr, out, total, WIDTH=spec.widths[0], LAYERS=spec.layers, PATHS=spec.paths,
            KAPPA=spec.kappa, GROUPS=spec.index_groups, PART=spec.condense_factor, BE=256,
            ACC=self.common["ACC"], **SMALL,
        )  # fmt: skip
        return out

    def place(self, layer: int) -> Tensor:
        """Where a layer reads, and appends behind that."""
        at = self.offsets[layer]
        return self.y[:, at:] if at else self.y

    def keep_new(self, layer: int) -> None:
        """What the k x k of a layer of version 2 made, by the paths that made it, behind the 1x1's results."""
        spec, width = self.spec, self.spec.widths[layer]
        made = spec.by_path(self.y)[:, :, width : width + spec.kappa][:, list(spec.destination(layer))].flatten(1, 2)
        start = spec.layers * self.size + layer * made.numel()
        self.mid[start : start + made.numel()].view(made.shape).copy_(made)

    def middle(self, layer: int) -> Tensor:
        return self.mid[layer * self.size :]

    def pointwise(self, layer: int, stats: Tensor, start: int, pitch: int, again: bool = False) -> None:
        """The 1x1 of a layer; its norm's statistics of a path start at ``start`` + path * ``pitch``.

        ``again``: its results alone, as the forward had them.
        """
        spec, t, tiles = self.spec, self.t, self.tiles
        width, first = spec.widths[layer], spec.starts[layer]
        un, uc, uq = self.y_stride
        programs = blocks((self.m, tiles.bm), (spec.mid, tiles.mid)) * spec.paths
        triton_kernels.pointwise[(programs,)](
            self.place(layer), t.weight1, self.middle(layer), t.affine1, stats, t.seed if spec.dropout else t.weight1,
            self.part, self.m, width, spec.mid * first, first, start, t.affine1.shape[1], stats.shape[1], pitch,
            spec.threshold, PIXELS=spec.h * spec.w, UN=un, UC=uc, UQ=uq, U_PATH=self.pitch, **self.mid_stride,
            DROP=spec.dropout > 0, KEEP=1 / (1 - spec.dropout), BN=tiles.mid, **self.options,
            **{**self.common, "STATS": spec.batch_stats and not again},
        )  # fmt: skip

    def spatial(self, layer: int, stats: Tensor, again: bool = False) -> None:
        """The k x k of a layer, appended to the buffer; ``again``: without its moments."""
        spec, t, tiles = self.spec, self.t, self.tiles
        first = layer * spec.paths * spec.mid
        yn, yc, yq = self.y_stride
        xor, turn = exchange(spec, layer)
        taps = spec.sets == 1
        programs = blocks((self.m, tiles.bm), (spec.kappa, tiles.kappa)) * spec.paths
        triton_kernels.spatial[(programs,)](
            self.middle(layer), self.weight3, t.bias3 if spec.has_bias else self.weight3, self.place(layer), t.affine2,
            stats, t.taps if taps else self.weight3, self.part, self.m, spec.widths[layer], first, first,
            t.affine2.shape[1], stats.shape[1], self.count, layer, H=spec.h, W=spec.w, KAPPA=spec.kappa,
            K=spec.kernel_size, **self.mid_stride, YN=yn, YC=yc, YQ=yq, Y_PATH=self.pitch, XOR=xor, TURN=turn,
            TAPS=taps, BIAS=spec.has_bias, BN=tiles.kappa, **self.options | {"num_warps": 4},
            **{**self.common, "STATS": spec.batch_stats and not again},
        )  # fmt: skip

    def condensed(self, layer: int) -> None:
        """The 1x1 of a layer of a condensed block."""
        spec, t, tiles = self.spec, self.t, self.tiles
        un, uc, uq = self.y_stride
        picked, each = spec.widths[layer] // spec.condense_factor, spec.mid // spec.index_groups
        column = spec.paths * sum(spec.inputs_of(i) for i in range(layer))
        bn = min(tiles.mid, max(16, pow2(each)))
        bm = min(64, tiles.bm)  # of more, what is picked and normed would fill the registers
        shared = {key: self.common[key] for key in ("PATHS", "MID", "EPS", "ACC", "MODE", "BK")}
        programs = blocks((self.m, bm), (each, bn)) * spec.index_groups * spec.paths
        triton_forms.condensed[(programs,)](
            self.y, t.weight1, self.middle(layer), t.index, t.affine1, t.running1, self.m, spec.widths[layer], picked,
            spec.mid * spec.starts[layer] // spec.condense_factor, column, t.affine1.shape[1], t.running1.shape[1],
            PIXELS=spec.h * spec.w, GROUPS=spec.index_groups, UN=un, UC=uc, UQ=uq, U_PATH=spec.widths[-1],
            **self.mid_stride, BM=bm, BN=bn, **shared, **self.options | {"num_warps": 4},
        )  # fmt: skip

    def reactivate(self, layer: int, stats: Tensor, moments: bool) -> None:
        """What version 2 adds to all that the layer read, in place or in the next frame; ``moments``: of what comes."""
        spec, t, tiles = self.spec, self.t, self.tiles
        width, outs = spec.widths[layer], layer * spec.paths * spec.kappa
        yn, yc, yq = self.y_stride
        xor, turn = exchange(spec, layer)
        bn = min(64, max(16, pow2(width)))
        shared = {key: self.common[key] for key in ("PATHS", "EPS", "ACC", "MODE", "BM")}
        triton_forms.reactivate[(blocks((self.m, tiles.bm), (width, bn)) * spec.paths,)](
            self.place(layer), self.place(min(layer + 1, spec.layers - 1)), self.weight_sfr, t.affine3, stats,
            self.part, self.m, width, spec.kappa * spec.starts[layer], outs, outs, t.affine3.shape[1], stats.shape[1],
            PIXELS=spec.h * spec.w, KAPPA=spec.kappa, YN=yn, YC=yc, YQ=yq, Y_PATH=self.pitch, XOR=xor, TURN=turn,
            STATS=moments, BN=bn, BK=min(tiles.bk, tiles.kappa), **shared, **self.options,
        )  # fmt: skip

    def finish(self, out: Tensor, channels: int, base: int, each: int, pitch: int, back: int | None = None) -> None:
        """The moments that the last kernel left, into columns of ``out``; those of layer ``back``'s new channels by the
        paths that made them."""
        xor, turn = (0, 0) if back is None else exchange(self.spec, back)
        triton_kernels.finish[(blocks((channels, 32)),)](
            self.part, out, self.m, channels, base, pitch, out.shape[1], each, PATHS=self.spec.paths, XOR=xor,
            TURN=-turn % self.spec.paths, BM=self.tiles.bm, BP=32, BE=32, **SMALL,
        )  # fmt: skip


def exchange(spec: Spec, layer: int) -> tuple[int, int]:
    """The path that receives path p's new channels is (p ^ first) + second, modulo the paths."""
    to = spec.destination(layer)[0]
    return (0, to) if spec.pairing == "rotate" else (to, 0)


def fwd(spec: Spec, t: Inputs, y: Tensor) -> Outputs:
    """Into y, whose first channels are there."""
    block = Block(spec, t, y)
    stats = [y.new_empty(shape, dtype=spec.acc_dtype) for shape in spec.stats_shapes]
    second, channels, outs = spec.version == 2, spec.paths * spec.mid, spec.paths * spec.kappa
    keeps = second and spec.keep and spec.device == "cpu"
    if spec.batch_stats:
        first = composite.moments(t.x.to(spec.acc_dtype)).view(2, spec.paths, -1)
        stats[0][:, : spec.starts[1] if second else None].view(2, spec.paths, -1)[:, :, : spec.widths[0]] = first
    for layer in range(spec.layers):
        start, width, more = spec.starts[layer], spec.widths[layer], layer + 1 < spec.layers
        if not spec.batch_stats:
            if spec.index_groups:
                block.condensed(layer)
            else:
                block.pointwise(layer, t.running1, start, width)
            block.spatial(layer, t.running2)
            if keeps:
                block.keep_new(layer)
            if second:
                block.reactivate(layer, t.running3, False)
            continue
        block.pointwise(layer, stats[0], *((start, width) if second else (0, spec.widths[-2])))
        block.finish(stats[1], channels, layer * channels, channels, 0)
        block.spatial(layer, stats[1])
        if keeps:
            block.keep_new(layer)
        # Where the next layer's statistics begin, and from one path to the next.
        begin, pitch = (spec.starts[layer + 1], spec.widths[layer + 1]) if second else (0, spec.widths[-2])
        if more:
            block.finish(stats[0], outs, begin + width, spec.kappa, pitch)
        if second:
            block.finish(stats[2], outs, layer * outs, spec.kappa, spec.kappa, back=layer)
            block.reactivate(layer, stats[2], more)
            if more:
                block.finish(stats[0], spec.paths * width, begin, width, pitch)
    return Outputs(y, *stats, block.mid if spec.keep else y.new_empty((0,)))


def recorded(spec: Spec, kind: str = "fwd") -> list[Launch]:
    """The launches of `fwd` or `bwd`, noted on meta tensors instead of run."""
    from lightkernels._core import triton_math
    from lightkernels._core.triton_static import record
    from lightkernels.ops.mldn_block import triton, triton_back, triton_second

    def meta(shape: tuple[int, ...], dtype: torch.dtype = spec.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    forms: dict[str, Any] = dict.fromkeys(("weight1", "weight3", "weight_sfr"), spec.dtype) | dict.fromkeys(
        ("index", "index_sfr", "seed"), torch.int64
    )
    norms = ("affine1", "affine2", "affine3", "running1", "running2", "running3")
    forms |= dict.fromkeys(norms, spec.acc_dtype)
    given: dict[str, Any] = {}
    for name, dtype in forms.items():
        shape = spec.shapes()[name]
        given[name] = None if shape is None else meta(shape, dtype)
    if spec.sets:
        given["taps"] = meta((spec.layers * spec.paths * spec.sets, spec.taps), torch.int64)
    x = torch.empty_strided(spec.x_shape, spec.x_stride, dtype=spec.dtype, device="meta")
    t = Inputs(x=x, **given)
    with record(triton_kernels, triton_forms, triton_back, triton_second, triton_math) as launches:
        if kind == "fwd":
            triton.fwd(spec, t)
        else:
            y = torch.empty_strided(spec.y_shape, spec.y_stride, dtype=spec.dtype, device="meta")
            out = Outputs(y, *(meta(shape, dtype) for shape, dtype in spec.kept()))
            triton.bwd(spec, y, t if spec.needs_input else t._replace(x=None), out)
    return launches

"""Launches of the Triton kernels of `mldn_block`; imported with the first call, because the kernels need Triton."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton.language as tl
from torch import Tensor

from lightkernels._core.triton_host import blocks, dot_mode, pow2
from lightkernels.ops.mldn_block import composite, triton_kernels
from lightkernels.ops.mldn_block.spec import Inputs, Outputs, Spec

if TYPE_CHECKING:
    from lightkernels._core.triton_static import Launch

SMALL = {"num_warps": 4, "num_stages": 1}


class Tiles:
    """Pixels of a program, which both kernels share; columns and channels of a step."""

    def __init__(self, spec: Spec) -> None:
        wide = spec.dtype.itemsize == 8
        self.bm = 32 if wide else 64 if spec.n * spec.h * spec.w < 2**15 else 128
        self.mid = min(64 if wide else 128, max(16, pow2(spec.mid)))
        self.kappa = min(64 if wide else 128, max(16, pow2(spec.kappa)))
        self.bk = 16 if wide else 32
        self.warps = 4


class Block:
    """One call: what its launches have in common."""

    def __init__(self, spec: Spec, t: Inputs, y: Tensor) -> None:
        self.spec, self.t, self.y, self.tiles = spec, t, y, Tiles(spec)
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
        last = spec.layout == "nhwc"
        channels, pixels = spec.paths * spec.mid, spec.h * spec.w
        self.mid_stride = {"TN": channels * pixels, "TC": 1 if last else pixels, "TQ": channels if last else 1}
        self.y_stride = (y.shape[1] * pixels, 1 if last else pixels, y.shape[1] if last else 1)
        size = self.m * channels
        self.mid = y.new_empty(spec.mid_shape) if spec.keep else y.new_empty((size,))
        self.size = size if spec.keep else 0
        count = blocks((self.m, self.tiles.bm))
        self.part = y.new_empty((count, 2, spec.paths * max(spec.mid, spec.kappa)), dtype=spec.acc_dtype)
        # Cells of the window where sets differ from filter to filter, else each path's own.
        self.dense = spec.sets > 1
        self.count = spec.kernel_size**2 if self.dense else spec.taps
        self.weight3 = self._spread()

    def _spread(self) -> Tensor:
        spec, t = self.spec, self.t
        total = spec.layers * spec.paths * self.count * spec.kappa * spec.mid
        out = self.y.new_empty((total,))
        triton_kernels.spread[(blocks((total, 1024)),)](
            t.weight3, t.taps if self.dense else t.weight3, out, total, COUNT=self.count, KAPPA=spec.kappa,
            MID=spec.mid, GROUPS=spec.groups, T=spec.taps, SETS=max(spec.sets, 1), DENSE=self.dense, BE=1024, **SMALL,
        )  # fmt: skip
        return out

    def middle(self, layer: int) -> Tensor:
        return self.mid[layer * self.size :]

    def pointwise(self, layer: int, stats: Tensor, start: int, pitch: int) -> None:
        """The 1x1 of a layer; its norm's statistics of a path start at ``start`` + path * ``pitch``."""
        spec, t, tiles = self.spec, self.t, self.tiles
        width, first = spec.widths[layer], spec.starts[layer]
        un, uc, uq = self.y_stride
        programs = blocks((self.m, tiles.bm), (spec.mid, tiles.mid)) * spec.paths
        triton_kernels.pointwise[(programs,)](
            self.y, t.weight1, self.middle(layer), t.affine1, stats, t.seed if spec.dropout else t.weight1, self.part,
            self.m, width, spec.mid * first, first, start, t.affine1.shape[1], stats.shape[1], pitch, spec.threshold,
            PIXELS=spec.h * spec.w, UN=un, UC=uc, UQ=uq, U_PATH=spec.widths[-1], **self.mid_stride,
            DROP=spec.dropout > 0, KEEP=1 / (1 - spec.dropout), BN=tiles.mid, **self.common, **self.options,
        )  # fmt: skip

    def spatial(self, layer: int, stats: Tensor) -> None:
        """The k x k of a layer, appended to the buffer."""
        spec, t, tiles = self.spec, self.t, self.tiles
        first = layer * spec.paths * spec.mid
        yn, yc, yq = self.y_stride
        xor, turn = exchange(spec, layer)
        taps = spec.sets == 1
        programs = blocks((self.m, tiles.bm), (spec.kappa, tiles.kappa)) * spec.paths
        triton_kernels.spatial[(programs,)](
            self.middle(layer), self.weight3, t.bias3 if spec.has_bias else self.weight3, self.y, t.affine2, stats,
            t.taps if taps else self.weight3, self.part, self.m, spec.widths[layer], first, first, t.affine2.shape[1],
            stats.shape[1], self.count, layer, H=spec.h, W=spec.w, KAPPA=spec.kappa, K=spec.kernel_size,
            **self.mid_stride, YN=yn, YC=yc, YQ=yq, Y_PATH=spec.widths[-1], XOR=xor, TURN=turn, TAPS=taps,
            BIAS=spec.has_bias, BN=tiles.kappa, **self.common, **self.options,
        )  # fmt: skip

    def finish(self, out: Tensor, channels: int, base: int, each: int, pitch: int) -> None:
        """The moments that the last kernel left, into columns of ``out``."""
        triton_kernels.finish[(blocks((channels, 32)),)](
            self.part, out, self.m, channels, base, pitch, out.shape[1], EACH=each, BM=self.tiles.bm, BP=32, BE=32,
            **SMALL,
        )  # fmt: skip


def exchange(spec: Spec, layer: int) -> tuple[int, int]:
    """The path that receives path p's new channels is (p ^ first) + second, modulo the paths."""
    to = spec.destination(layer)[0]
    return (0, to) if spec.pairing == "rotate" else (to, 0)


def fwd(spec: Spec, t: Inputs, y: Tensor) -> Outputs:
    """Into y, whose first channels are there."""
    block = Block(spec, t, y)
    stats = [y.new_empty(shape, dtype=spec.acc_dtype) for shape in spec.stats_shapes]
    last = spec.widths[-2]
    if spec.batch_stats:
        first = composite.moments(t.x.to(spec.acc_dtype)).view(2, spec.paths, -1)
        stats[0].view(2, spec.paths, last)[:, :, : spec.widths[0]] = first
    for layer in range(spec.layers):
        channels = spec.paths * spec.mid
        if spec.batch_stats:
            block.pointwise(layer, stats[0], 0, last)
            block.finish(stats[1], channels, layer * channels, channels, 0)
            block.spatial(layer, stats[1])
            if layer + 1 < spec.layers:
                block.finish(stats[0], spec.paths * spec.kappa, spec.widths[layer], spec.kappa, last)
        else:
            block.pointwise(layer, t.running1, spec.starts[layer], spec.widths[layer])
            block.spatial(layer, t.running2)
    return Outputs(y, *stats, block.mid if spec.keep else y.new_empty((0,)))


def recorded(spec: Spec) -> list[Launch]:
    """The launches of `fwd`, noted on meta tensors instead of run."""
    from lightkernels._core.triton_static import record
    from lightkernels.ops.mldn_block import triton

    def meta(shape: tuple[int, ...], dtype: torch.dtype = spec.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    forms: dict[str, Any] = {"weight1": spec.dtype, "weight3": spec.dtype}
    forms |= dict.fromkeys(("affine1", "affine2", "running1", "running2"), spec.acc_dtype)
    given: dict[str, Any] = {}
    for name, dtype in forms.items():
        shape = spec.shapes()[name]
        given[name] = None if shape is None else meta(shape, dtype)
    if spec.sets:
        given["taps"] = meta((spec.layers * spec.paths * spec.sets, spec.taps), torch.int64)
    x = torch.empty_strided(spec.x_shape, spec.x_stride, dtype=spec.dtype, device="meta")
    with record(triton_kernels) as launches:
        triton.fwd(spec, Inputs(x=x, **given))
    return launches

"""Launches of the backward of `mldn_block` in Triton: version 1, and what version 2 has of it.

One buffer, like the output, adds up the gradients of its channels. They are complete when the layer that made them is
reached, but for what the channel's mean and variance take, which follows from two sums a channel.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightkernels._core import triton_math
from lightkernels._core.triton_host import blocks, pow2
from lightkernels.ops.mldn_block import triton_back
from lightkernels.ops.mldn_block.spec import Inputs, Outputs, Spec
from lightkernels.ops.mldn_block.triton_launch import SMALL, Block, exchange, strides

PROGRAMS = 512  # about, of a weight gradient; a constant, so that its sums have one order everywhere


class Backward:
    """One call: the buffers of its gradients, and what its launches have in common."""

    names: tuple[str, ...] = ("weight1", "weight3", "affine1", "affine2", "bias3")

    def __init__(self, spec: Spec, g: Tensor, t: Inputs, out: Outputs) -> None:
        self.spec, self.t, self.out = spec, t, out
        self.block = self.make_block()
        self.tiles, self.m, self.wide = self.block.tiles, self.block.m, spec.dtype.itemsize == 8
        acc = spec.acc_dtype
        self.total = g.new_empty_strided(spec.y_shape, spec.y_stride, dtype=acc).copy_(g)
        self.sums = g.new_empty((2, spec.paths * spec.widths[-1]), dtype=acc).zero_()
        self.fresh = g.new_empty((self.m * spec.paths * spec.kappa,))
        self.back = g.new_empty((self.m * spec.paths * spec.mid,))
        self.rows = blocks((self.m, self.tiles.bm))
        self.part = g.new_empty((self.rows, 2, spec.paths * max(spec.mid, spec.widths[-2])), dtype=acc)
        given = {name: getattr(t, name) for name in self.names}
        self.grads: dict[str, Any] = {k: None if v is None else v.new_empty(tuple(v.shape)) for k, v in given.items()}
        common = {key: self.block.common[key] for key in ("PATHS", "MID", "EPS", "MODE", "ACC")}
        self.pixels = {**common, "PIXELS": spec.h * spec.w, **self.block.mid_stride}
        self.pixels |= {**strides(spec, "U", self.block.y.shape[1]), "U_PATH": self.block.pitch}
        self.pixels["BATCH"] = spec.batch_stats
        self.into = {**strides(spec, "D", spec.y_shape[1]), "D_PATH": spec.widths[-1]}
        self.pixels |= {"DROP": spec.dropout > 0, "KEEP": 1 / (1 - spec.dropout)}
        self.window = {**common, "H": spec.h, "W": spec.w, "KAPPA": spec.kappa, "K": spec.kernel_size}
        self.window |= {**strides(spec, "G", spec.paths * spec.kappa), **self.block.mid_stride}
        self.window["TAPS"] = spec.sets == 1
        self.taps = t.taps if spec.sets else self.block.weight3
        self.options = self.block.options
        self.narrow = {**self.options, "num_warps": 4}  # of weight gradients, whose blocks of pixels are short

    def make_block(self) -> Block:
        return Block(self.spec, self.t, self.out.y, self.out.mid if self.spec.keep else None)

    # Columns of the norms' packed tensors.

    def first(self, layer: int) -> tuple[Tensor, int, int]:
        """Statistics of norm1, where the first path's begin, and from one path to the next."""
        spec = self.spec
        if spec.batch_stats and spec.version == 1:
            return self.out.stats1, 0, spec.widths[-2]
        stats = self.out.stats1 if spec.batch_stats else self.t.running1
        return stats, spec.starts[layer], spec.widths[layer]

    @property
    def second(self) -> Tensor:
        return self.out.stats2 if self.spec.batch_stats else self.t.running2

    # Steps.

    def settle(self, start: int, each: int, out: Tensor, layer: int | None) -> None:
        """The gradient of channels, complete: those a layer made, as that path's, or the input's."""
        spec = self.spec
        xor, turn = (0, 0) if layer is None else exchange(spec, layer)
        bias = layer is not None and spec.has_bias
        bn = min(64, max(16, pow2(each)))
        stats = self.out.stats1
        triton_back.settle[(self.rows * blocks((each, bn)) * spec.paths,)](
            self.total, self.out.y, stats, self.sums, out, self.part, self.m, start, stats.shape[1],
            PIXELS=spec.h * spec.w, PATHS=spec.paths, EACH=each, **strides(spec, "Y", spec.y_shape[1]),
            Y_PATH=spec.widths[-1], S_PATH=spec.widths[-2], **strides(spec, "O", spec.paths * each), XOR=xor, TURN=turn,
            EPS=spec.eps, BATCH=spec.batch_stats and start < spec.widths[-2], BIAS=bias, BM=self.tiles.bm, BN=bn,
            **SMALL,
        )  # fmt: skip
        if bias:
            outs = spec.paths * spec.kappa
            self._sum(self.part, self.rows, self.grads["bias3"][layer * outs :], outs)

    def _sum(self, part: Tensor, parts: int, out: Tensor, size: int) -> None:
        triton_math.sum_parts[(blocks((size, 128)),)](part, out, parts, size, BP=min(32, pow2(parts)), BE=128, **SMALL)

    def _norm_sums(self, name: str, channels: int, start: int, each: int) -> None:
        affine, grad = getattr(self.t, name), self.grads[name]
        triton_back.norm_sums[(blocks((channels, 32)),)](
            self.part, affine, grad, self.sums, self.rows, channels, start, affine.shape[1], each, self.sums.shape[1],
            S_PATH=self.spec.widths[-1], SUMS=name == "affine1", BP=32, BE=32, **SMALL,
        )  # fmt: skip

    def _runs(self, programs: int, bm: int) -> tuple[int, int, int]:
        """Items, items a program, and programs that share the pixels of one block of a weight gradient."""
        items = blocks((self.m, bm))
        per = -(-items // max(1, min(items // 4, PROGRAMS // programs)))
        return items, per, -(-items // per)

    def spatial(self, layer: int) -> None:
        """The k x k: from the gradient of its results to that of its norm, its weights and that norm's."""
        spec, block, tiles = self.spec, self.block, self.tiles
        first, z = layer * spec.paths * spec.mid, block.middle(layer)
        rows = (first, first, self.t.affine2.shape[1], self.second.shape[1])
        bn = min(64, tiles.mid)
        triton_back.spatial_back[(self.rows * blocks((spec.mid, bn)) * spec.paths,)](
            self.fresh, block.weight3, z, self.t.affine2, self.second, self.taps, self.back, self.part, self.m, *rows,
            block.count, layer, **self.window, BM=tiles.bm, BN=bn, BK=min(tiles.bk, tiles.kappa), **self.options,
        )  # fmt: skip
        self._norm_sums("affine2", spec.paths * spec.mid, first, 1)
        bm, bo, bc = (16 if self.wide else 32), min(32 if self.wide else 64, tiles.kappa), min(64, tiles.mid)
        programs = blocks((spec.kappa, bo), (spec.mid, bc)) * block.count * spec.paths
        items, per, parts = self._runs(programs, bm)
        each = spec.paths * spec.kappa * spec.mid
        part = self.part.new_empty((parts, each * block.count))
        triton_back.spatial_grad[(programs * parts,)](
            self.fresh, z, self.t.affine2, self.second, self.taps, part, self.m, *rows, block.count, layer, items, per,
            **self.window, BM=bm, BO=bo, BC=bc, **self.narrow,
        )  # fmt: skip
        size = each // spec.groups * spec.taps
        triton_back.collect[(blocks((size, 128)),)](
            part, self.taps, self.grads["weight3"][layer * size :], size, parts, layer, PATHS=spec.paths,
            COUNT=block.count, KAPPA=spec.kappa, MID=spec.mid, GROUPS=spec.groups, T=spec.taps, SETS=max(spec.sets, 1),
            DENSE=block.dense, CELLS=spec.kernel_size**2, BP=min(32, pow2(parts)), BE=128, **SMALL,
        )  # fmt: skip

    def pointwise(self, layer: int) -> None:
        """The 1x1: to the gradients of all channels it read, its weights and its norm's."""
        spec, t, block, tiles = self.spec, self.t, self.block, self.tiles
        width, start = spec.widths[layer], spec.starts[layer]
        stats, begin, pitch = self.first(layer)
        second = layer * spec.paths * spec.mid
        z, u, seed = block.middle(layer), block.place(layer), t.seed if spec.dropout else t.weight1
        norms = (t.affine2, self.second, self.grads["affine2"], t.affine1, stats, seed)
        rows = (start, begin, t.affine1.shape[1], stats.shape[1], pitch)
        rows += (second, t.affine2.shape[1], second, self.second.shape[1], spec.threshold)
        bn = min(64, max(16, pow2(width)))
        triton_back.pointwise_back[(self.rows * blocks((width, bn)) * spec.paths,)](
            self.back, z, t.weight1, u, self.total, *norms, self.part, self.m, width, spec.mid * start, *rows,
            **self.pixels, **self.into, BM=tiles.bm, BN=bn, BK=max(16, 64 // spec.dtype.itemsize), **self.options,
        )  # fmt: skip
        self._norm_sums("affine1", spec.paths * width, start, width)
        bm, bo = (16 if self.wide else 32), min(32 if self.wide else 64, tiles.mid)
        bc = min(32 if self.wide else 64, bn)
        programs = blocks((spec.mid, bo), (width, bc)) * spec.paths
        items, per, parts = self._runs(programs, bm)
        size = spec.paths * spec.mid * width
        part = self.part.new_empty((parts, size))
        triton_back.pointwise_grad[(programs * parts,)](
            self.back, z, u, *norms, part, self.m, width, *rows, items, per, **self.pixels, BM=bm, BO=bo,
            BC=bc, **self.narrow,
        )  # fmt: skip
        self._sum(part, parts, self.grads["weight1"][spec.mid * start :], size)


def bwd(spec: Spec, g: Tensor, t: Inputs, out: Outputs) -> tuple[Tensor | None, ...]:
    run = Backward(spec, g, t, out)
    for layer in reversed(range(spec.layers)):
        run.settle(spec.widths[layer], spec.kappa, run.fresh, layer)
        if not spec.keep:
            run.block.pointwise(layer, *run.first(layer), again=True)
        run.spatial(layer)
        run.pointwise(layer)
    gx: Tensor = g.new_empty_strided(spec.x_shape, spec.dense_x_stride)
    run.settle(0, spec.widths[0], gx, None)
    found: list[Any] = [run.grads[name] for name in ("weight1", "weight3", "affine1", "affine2", "bias3")]
    return (gx, *found, None, None)

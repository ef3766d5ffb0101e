"""Launches of the backward of `mldn_block`, version 2, in Triton.

The channels that a layer read have changed since. So the forward runs once more, with the statistics that it had, and
leaves a frame of each layer in one tensor: for every path what the layer read, and behind it the new channels that the
path received. The 1x1's results are taken from the forward where it kept them.
"""

from __future__ import annotations

from itertools import accumulate

from torch import Tensor

from lightkernels._core.spec import dense_stride
from lightkernels._core.triton_host import blocks, pow2
from lightkernels.ops.mldn_block import triton_second
from lightkernels.ops.mldn_block.spec import Inputs, Outputs, Spec
from lightkernels.ops.mldn_block.triton_launch import SMALL, Block, exchange, strides
from lightkernels.ops.mldn_block.triton_launch_back import Backward


class Second(Backward):
    """One call of version 2: what its layers read, and the steps that its reactivation needs."""

    names = (*Backward.names, "weight_sfr", "affine3")

    def __init__(self, spec: Spec, g: Tensor, t: Inputs, out: Outputs) -> None:
        super().__init__(spec, g, t, out)
        self.third = g.new_empty((self.m * spec.paths * spec.kappa,))
        common = {key: self.pixels[key] for key in ("PIXELS", "PATHS", "UN", "UC", "UQ", "U_PATH", "EPS")}
        self.whole = {**common, **self.into}
        self.new = {**self.whole, "KAPPA": spec.kappa}
        self.own = strides(spec, "G", spec.paths * spec.kappa)
        self.product = {key: self.pixels[key] for key in ("MODE", "ACC")}

    @property
    def last(self) -> Tensor:
        return self.out.stats3 if self.spec.batch_stats else self.t.running3

    def make_block(self) -> Block:
        spec, t, out = self.spec, self.t, self.out
        offsets = [0, *accumulate(spec.widths[1:])]
        shape = (spec.n, spec.paths * offsets.pop(), spec.h, spec.w)
        frames = t.x.new_empty_strided(shape, dense_stride(shape, spec.layout))
        block = Block(spec, t, frames, out.mid if spec.keep else None, offsets)
        parts = spec.by_path(frames)
        parts[:, :, : spec.widths[0]].copy_(spec.by_path(t.x))
        for layer in range(spec.layers):
            if not spec.keep:
                block.pointwise(layer, *self.first(layer), again=True)
            block.spatial(layer, self.second, again=True)
            if layer + 1 < spec.layers:
                block.reactivate(layer, self.last, False)
                start, end = spec.widths[layer : layer + 2]
                old, new = offsets[layer : layer + 2]
                parts[:, :, new + start : new + end].copy_(parts[:, :, old + start : old + end])
        return block

    def reactivation(self, layer: int) -> None:
        """To the gradient of what the layer's k x k made, of the reactivation's weights and of its norm."""
        spec, t, tiles, u = self.spec, self.t, self.tiles, self.block.place(layer)
        width, start, outs = spec.widths[layer], spec.starts[layer], layer * spec.paths * spec.kappa
        xor, turn = exchange(spec, layer)
        turns = {"XOR": xor, "TURN": turn}
        rows = (outs, outs, t.affine3.shape[1], self.last.shape[1])
        bn, bk = min(64, tiles.kappa), max(16, 64 // spec.dtype.itemsize)
        programs = self.rows * blocks((spec.kappa, bn)) * spec.paths
        triton_second.reactivate_back[(programs,)](
            self.total, t.weight_sfr, u, t.affine3, self.last, self.third, self.part, self.m, width,
            spec.kappa * start, *rows, **self.new, **self.own, **turns, **self.product, BM=tiles.bm, BN=bn, BK=bk,
            **self.options,
        )  # fmt: skip
        self._norm_sums("affine3", spec.paths * spec.kappa, outs, 1)
        bm, bo, bc = (16 if self.wide else 32), min(32 if self.wide else 64, tiles.kappa), min(64, max(16, pow2(width)))
        count = blocks((spec.kappa, bo), (width, bc)) * spec.paths
        items, per, parts = self._runs(count, bm)
        size = spec.paths * width * spec.kappa
        part = self.part.new_empty((parts, size))
        triton_second.reactivate_grad[(count * parts,)](
            self.total, u, t.affine3, self.last, part, self.m, width, *rows, items, per, **self.new, **turns,
            **self.product, BM=bm, BO=bo, BC=bc, **self.narrow,
        )  # fmt: skip
        self._sum(part, parts, self.grads["weight_sfr"][spec.kappa * start :], size)
        triton_second.join[(programs,)](
            self.total, self.third, u, t.affine3, self.last, self.grads["affine3"], self.fresh, self.part, self.m,
            width, *rows, **self.new, **self.own, **turns, BATCH=spec.batch_stats, BIAS=spec.has_bias, BM=tiles.bm,
            BN=bn, **SMALL,
        )  # fmt: skip
        if spec.has_bias:
            count = spec.paths * spec.kappa
            self._sum(self.part, self.rows, self.grads["bias3"][layer * count :], count)

    def recentre(self, layer: int) -> None:
        """What follows from the statistics of what the layer read."""
        spec, width = self.spec, self.spec.widths[layer]
        stats, begin, _ = self.first(layer)
        bn = min(64, max(16, pow2(width)))
        triton_second.recentre[(self.rows * blocks((width, bn)) * spec.paths,)](
            self.total, self.block.place(layer), stats, self.sums, self.m, width, begin, stats.shape[1], **self.whole,
            BM=self.tiles.bm, BN=bn, **SMALL,
        )  # fmt: skip
        self.sums.zero_()


def bwd(spec: Spec, g: Tensor, t: Inputs, out: Outputs) -> tuple[Tensor | None, ...]:
    run = Second(spec, g, t, out)
    for layer in reversed(range(spec.layers)):
        if not spec.keep:
            run.block.pointwise(layer, *run.first(layer), again=True)
        run.reactivation(layer)
        run.spatial(layer)
        run.pointwise(layer)
        if spec.batch_stats:
            run.recentre(layer)
    gx: Tensor = g.new_empty_strided(spec.x_shape, spec.dense_x_stride)
    spec.by_path(gx).copy_(spec.prefix(run.total))
    return (gx, *(run.grads[name] for name in ("weight1", "weight3", "affine1", "affine2", *run.names[4:])))

"""Whole MLDN networks as a user of PyTorch would write them, to measure ours against."""

from __future__ import annotations

import copy
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lightkernels
from lightkernels import models
from lightkernels.nn import CondensedConv2d, MLDNBlock, RSDC2d
from lightkernels.nn.mldn import MLDNPath


class Layered(nn.Module):
    """The block's modules one after another, by PyTorch's kernels alone: split, paths, exchange, cat.

    RSDC is a dense convolution of its window, zero but for its cells; a condensed 1x1 picks its inputs and convolves.
    """

    def __init__(self, block: MLDNBlock, condensed: bool = False, plain: bool = False) -> None:
        super().__init__()
        self.layers, self.plain = copy.deepcopy(block.layers), plain
        for path in (m for m in self.layers.modules() if isinstance(m, MLDNPath)):
            if isinstance(path.conv, RSDC2d):
                path.conv = path.conv.to_conv2d()
            if condensed:
                small = path.reduce.condense()
                path.reduce = PlainCondensed(small) if plain else small  # type: ignore[assignment]
                if path.reactivate is not None:
                    path.reactivate = path.reactivate.condense()  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        if self.plain:
            return self.run(x)
        with lightkernels.use_backend("torch"):
            return self.run(x)

    def run(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class PlainCondensed(nn.Module):
    """Picked channels, norm, ReLU, grouped convolution, shuffle: PyTorch's operators, for torch.compile to see."""

    def __init__(self, one: CondensedConv2d) -> None:
        super().__init__()
        self.groups, self.norm = len(one.index), one.norm
        self.register_buffer("index", one.index.flatten())
        weight = one.weight.detach().unflatten(0, (-1, self.groups)).transpose(0, 1).flatten(0, 1)
        self.weight = nn.Parameter(weight[:, :, None, None].clone())

    def forward(self, x: Tensor) -> Tensor:
        index = cast(Tensor, self.index)
        y = F.conv2d(self.norm(x.index_select(1, index)).relu(), self.weight, groups=self.groups)
        shuffled: Tensor = y.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)
        return shuffled


class Grouped(nn.Module):
    """All paths of a layer in grouped calls, as many as one path has: the strongest form for version 1, unpruned."""

    def __init__(self, block: MLDNBlock) -> None:
        super().__init__()
        self.paths, self.norms, self.convs = block.paths, nn.ModuleList(), nn.ModuleList()
        self.sources: list[list[int]] = []
        for layer in block.layers:
            paths = cast("list[MLDNPath]", layer.paths)
            self.sources.append(cast("list[int]", layer.sources))
            kernels = [p.conv.to_conv2d() if isinstance(p.conv, RSDC2d) else cast(nn.Conv2d, p.conv) for p in paths]
            wide, kernel = paths[0].reduce, kernels[0]
            one = nn.Conv2d(
                wide.in_channels * len(paths), wide.out_channels * len(paths), 1, groups=len(paths), bias=False
            )
            three = nn.Conv2d(
                one.out_channels,
                kernel.out_channels * len(paths),
                kernel.kernel_size,
                padding=kernel.padding,
                groups=kernel.groups * len(paths),
                bias=False,
            )
            with torch.no_grad():
                one.weight.copy_(torch.cat([p.reduce.masked_weight() for p in paths])[:, :, None, None])
                three.weight.copy_(torch.cat([k.weight for k in kernels]))
            self.norms.append(
                nn.ModuleList([_joined([p.reduce.norm for p in paths]), _joined([p.norm for p in paths])])
            )
            self.convs.append(nn.ModuleList([one, three]))

    def forward(self, x: Tensor) -> Tensor:
        for source, norms, convs in zip(self.sources, self.norms, self.convs, strict=True):
            (first, second), (one, three) = norms, convs  # type: ignore[misc]
            h = three(second(one(first(x).relu())).relu())
            # Not h[:, source]: on two threads what torch.compile makes of its gradient writes beyond its memory.
            fresh = h.unflatten(1, (self.paths, -1))
            exchanged = torch.stack([fresh[:, p] for p in source], 1)
            x = torch.cat((x.unflatten(1, (self.paths, -1)), exchanged), 2).flatten(1, 2)
        return x


def _joined(norms: list[nn.BatchNorm2d]) -> nn.BatchNorm2d:
    joined = nn.BatchNorm2d(sum(n.num_features for n in norms))
    state = {
        k: torch.cat([n.state_dict()[k] for n in norms]) for k in ("weight", "bias", "running_mean", "running_var")
    }
    joined.load_state_dict(state, strict=False)
    return joined


def eager(model: nn.Module, form: str) -> nn.Module:
    """A copy of an MLDN whose blocks are ``layered``, ``condensed`` (layered), ``plain`` (condensed, by PyTorch's
    operators alone) or ``grouped``."""
    copied = copy.deepcopy(model)
    blocks = cast(nn.Sequential, copied.blocks)
    for i, block in enumerate(blocks):
        if isinstance(block, MLDNBlock):
            blocks[i] = (
                Grouped(block) if form == "grouped" else Layered(block, form in ("condensed", "plain"), form == "plain")
            )
    return copied


class OneBlock(nn.Module):
    """A dense block in the place of a network."""

    def __init__(self, block: MLDNBlock) -> None:
        super().__init__()
        self.blocks = nn.Sequential(block)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.blocks(x)
        return y


def condensenet(growth: tuple[int, ...]) -> nn.Module:
    """The network that MLDN starts from."""
    return models.condensenet((14, 14, 14), growth)

"""A multi-path dense block after its last pruning stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightkernels.functional import mldn_block
from lightkernels.nn import _mldn_pack
from lightkernels.nn.learned_group import SparseFeatureReactivation
from lightkernels.nn.rsdc import RSDC2d

torch.fx.wrap("mldn_block")  # one call of torch.fx's graphs


class CondensedMLDNBlock(nn.Module):
    """What :meth:`MLDNBlock.condense` makes of a block: for inference alone.

    Shapes: as of the block. Parameters, packed by layer and path: ``weight1`` (a block ``[m, c / condense_factor]``),
    ``weight3``, ``affine1`` ``[2, picked channels]``, ``affine2``, ``bias3`` or None. Buffers: ``running1``,
    ``running2``, ``index`` (for every group of the 1x1 the channels of its path that it reads) and ``taps`` or None.
    Version 2 has ``weight_sfr`` (a block ``[channels reached, kappa / groups]``), ``affine3``, ``running3`` and
    ``index_sfr`` (for every group of new channels the channels of its path that it is added to); version 1 has None.
    """

    running1: Tensor
    running2: Tensor
    index: Tensor
    taps: Tensor | None
    running3: Tensor | None
    index_sfr: Tensor | None
    bias3: nn.Parameter | None
    weight_sfr: nn.Parameter | None
    affine3: nn.Parameter | None

    def __init__(self, values: dict[str, Any], paths: Sequence[Any]) -> None:
        """``values``: the operator's but eps; ``paths``: of ``reduce``, ``norm``, ``conv`` and ``reactivate``."""
        super().__init__()
        indices = [p.reduce.kept() for p in paths]
        self.values = {**values, "eps": paths[0].norm.eps}
        picked = [p.reduce.norm for p in paths], [i.flatten() for i in indices]
        with torch.no_grad():
            weights = [
                p.reduce.weight.gather(1, i.repeat(p.reduce.out_channels // len(i), 1))
                for p, i in zip(paths, indices, strict=True)
            ]
            norms = {
                name: _mldn_pack.rows(*([getattr(n, a)[i] for n, i in zip(*picked, strict=True)] for a in both))
                for name, both in (("affine1", ("weight", "bias")), ("running1", ("running_mean", "running_var")))
            }
            biased = paths[0].conv.bias is not None
            self.weight1 = nn.Parameter(_mldn_pack.flat(weights))
            self.weight3 = nn.Parameter(_mldn_pack.flat([p.conv.weight for p in paths]))
            self.affine1 = nn.Parameter(norms["affine1"])
            self.affine2 = nn.Parameter(_mldn_pack.affine([p.norm for p in paths]))
            bias = nn.Parameter(_mldn_pack.flat([p.conv.bias for p in paths])) if biased else None
            self.register_parameter("bias3", bias)
            self.register_buffer("running1", norms["running1"])
            self.register_buffer("running2", _mldn_pack.running([p.norm for p in paths]))
            self.register_buffer("index", torch.cat([i.flatten() for i in indices]))
            rsdc = isinstance(paths[0].conv, RSDC2d)
            self.register_buffer("taps", torch.cat([p.conv.taps for p in paths]) if rsdc else None)
            self._reactivating([p.reactivate for p in paths] if values["version"] == 2 else [])

    def _reactivating(self, layers: Sequence[SparseFeatureReactivation]) -> None:
        small, norms = [layer.condense() for layer in layers], [layer.norm for layer in layers]
        there = bool(layers)
        self.weight_sfr = nn.Parameter(_mldn_pack.flat([s.weight for s in small])) if there else None
        self.affine3 = nn.Parameter(_mldn_pack.affine(norms)) if there else None
        self.register_buffer("running3", _mldn_pack.running(norms) if there else None)
        self.register_buffer("index_sfr", _mldn_pack.flat([s.index for s in small]) if there else None)

    def forward(self, x: Tensor) -> Tensor:
        return mldn_block(
            x,
            self.weight1,
            self.weight3,
            self.affine1,
            self.affine2,
            self.bias3,
            self.weight_sfr,
            self.affine3,
            running1=self.running1,
            running2=self.running2,
            running3=self.running3,
            index=self.index,
            index_sfr=self.index_sfr,
            taps=self.taps,
            **self.values,
        )

    def stated_count(self, convention: str, x: Tensor, y: Tensor) -> tuple[int, int]:
        """Of one image: parameters, and multiply-adds with, but for ``"macs"``, one for each activation."""
        pixels = x.shape[2] * x.shape[3]
        third = self.weight3.numel() + (0 if self.weight_sfr is None else self.weight_sfr.numel())
        activations = 0 if convention == "macs" else self.index.numel() + self.affine2.shape[1]
        if convention != "macs" and self.affine3 is not None:
            activations += self.affine3.shape[1]
        return sum(p.numel() for p in self.parameters()), (self.weight1.numel() + third + activations) * pixels

    def extra_repr(self) -> str:
        v = self.values
        return f"growth={v['growth']}, num_layers={v['num_layers']}, paths={v['paths']}, pairing={v['pairing']!r}"

"""Between the modules of a multi-path dense block and the packed tensors of its operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightkernels.nn.learned_group import LearnedGroupConv2d, SparseFeatureReactivation
from lightkernels.nn.rsdc import RSDC2d

Norms = list[nn.BatchNorm2d]


def why_layered(paths: Sequence[Any], norms: tuple[Norms, ...]) -> str | None:
    """Why one call cannot compute what these modules, path by path, do; None if it can."""
    every = [n for group in norms for n in group]
    odd = next((n for n in every if type(n) is not nn.BatchNorm2d), None)
    if odd is not None:
        return f"a norm is a {type(odd).__name__}"
    if any(n.weight is None or n.bias is None for n in every):
        return "a norm has neither gamma nor beta"
    if len({n.training or n.running_mean is None for n in every}) > 1:
        return "some norms use batch statistics and others running ones"
    if len({n.eps for n in every}) > 1:
        return "the norms differ in eps"
    if len({(p.reduce.dropout, p.reduce.training) for p in paths}) > 1:
        return "the paths differ in dropout"
    for path in paths:
        if type(path.reduce) is not LearnedGroupConv2d or path.reduce.activation != "relu":
            return f"a 1x1 is a {type(path.reduce).__name__} without a mask, or its activation is no ReLU"
        if type(path.conv) not in (nn.Conv2d, RSDC2d) or getattr(path.conv, "resample", "never") != "never":
            return f"a 3x3 is a {type(path.conv).__name__}, or draws its taps anew"
        if path.reactivate is not None and type(path.reactivate) is not SparseFeatureReactivation:
            return f"a reactivation is a {type(path.reactivate).__name__}"
    return None


def hooked(block: nn.Module) -> bool:
    """Whether somebody waits for a child to be called."""
    children = iter(block.modules())
    next(children)
    return any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in children)


class Masks:
    """The masks of many layers as one factor of their packed weights, made anew when one of them changes."""

    def __init__(self) -> None:
        self.known: list[tuple[Tensor, int]] = []
        self.factor: Tensor | None = None

    def of(self, layers: Sequence[LearnedGroupConv2d | SparseFeatureReactivation], dtype: torch.dtype) -> Tensor:
        masks = [layer.mask for layer in layers]
        if torch.compiler.is_compiling():
            return self._make(layers, dtype)
        factor = self.factor
        same = factor is not None and factor.dtype is dtype and len(masks) == len(self.known)
        if not same or any(a is not m or v != m._version for m, (a, v) in zip(masks, self.known, strict=True)):
            with torch.no_grad():
                self.factor = factor = self._make(layers, dtype)
            self.known = [(m, m._version) for m in masks]
        assert factor is not None
        return factor

    @staticmethod
    def _make(layers: Sequence[LearnedGroupConv2d | SparseFeatureReactivation], dtype: torch.dtype) -> Tensor:
        parts = []
        for layer in layers:
            each = layer.mask.repeat(layer.weight.shape[0] // layer.groups, 1)
            if isinstance(layer, SparseFeatureReactivation):
                each = layer.mask.t().repeat(1, layer.weight.shape[1] // layer.groups)
            parts.append(each.flatten())
        return torch.cat(parts).to(dtype)


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


def rows(first: Sequence[Any], second: Sequence[Any]) -> Tensor:
    """[2, total], in the dtype that norms are computed in."""
    pair = torch.stack([torch.cat(list(first)), torch.cat(list(second))])
    return pair if pair.dtype is torch.float64 else pair.float()


def affine(norms: Norms) -> Tensor:
    return rows([n.weight for n in norms], [n.bias for n in norms])


def running(norms: Norms) -> Tensor:
    return rows([n.running_mean for n in norms], [n.running_var for n in norms])


@torch.no_grad()
def update(norms: Norms, means: Sequence[Tensor], variances: Sequence[Tensor]) -> None:
    """What BatchNorm does with batch statistics in training; ``variances`` are unbiased."""
    kept = [
        (n, m, v)
        for n, m, v in zip(norms, means, variances, strict=True)
        if n.training and n.track_running_stats and n.running_mean is not None
    ]
    if not kept:
        return
    counts = [n.num_batches_tracked for n, _, _ in kept if n.num_batches_tracked is not None]
    if counts:
        torch._foreach_add_(counts, 1)
    by_momentum: dict[float | None, list[tuple[nn.BatchNorm2d, Tensor, Tensor]]] = {}
    for item in kept:
        by_momentum.setdefault(item[0].momentum, []).append(item)
    for momentum, items in by_momentum.items():
        old = [t for n, _, _ in items for t in (n.running_mean, n.running_var) if t is not None]
        new = [t.to(o.dtype) for o, t in zip(old, (t for _, m, v in items for t in (m, v)), strict=True)]
        if momentum is not None:
            torch._foreach_mul_(old, 1 - momentum)
            torch._foreach_add_(old, new, alpha=momentum)
            continue
        for i, (norm, _, _) in enumerate(items):
            # The mean over all batches so far; the count stays on its device.
            assert norm.num_batches_tracked is not None
            for o, t in zip(old[2 * i : 2 * i + 2], new[2 * i : 2 * i + 2], strict=True):
                o.lerp_(t, 1 / norm.num_batches_tracked.to(o.dtype))

"""Between the modules of a multi-path dense block and the packed tensors of its operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightkernels._core import tracing
from lightkernels.nn.learned_group import LearnedGroupConv2d, SparseFeatureReactivation
from lightkernels.nn.rsdc import RSDC2d

Norms = list[nn.BatchNorm2d]


class Parts:
    """The modules of a block, kind by kind, by layer and path.

    Read from the modules' own tables: a block has hundreds, and looking each up by name costs more than small layers.
    That is the same for modules of exactly the known types, which ``why_layered`` asks for.
    """

    def __init__(self, layers: nn.Module) -> None:
        self.all: list[Any] = []
        self.reduces: list[LearnedGroupConv2d] = []
        self.convs: list[Any] = []
        self.acts: list[Any] = []
        self.reactivates: list[Any] = []
        self.norms: tuple[Norms, Norms, Norms] = ([], [], [])
        for layer in layers._modules.values():
            assert layer is not None
            paths = layer._modules["paths"]
            assert paths is not None
            self.all += (layer, paths)
            for path in paths._modules.values():
                assert path is not None
                own: Any = path._modules
                reduce, reactivate = own["reduce"], own.get("reactivate")
                self.reduces.append(reduce)
                self.convs.append(own["conv"])
                self.acts.append(own["act"])
                self.norms[0].append(reduce._modules["norm"])
                self.norms[1].append(own["norm"])
                self.all += (path, *own.values())
                if reactivate is not None:
                    self.reactivates.append(reactivate)
                    self.norms[2].append(reactivate._modules["norm"])
        self.all += [*self.norms[0], *self.norms[2]]

    def hooked(self) -> bool:
        """Whether somebody waits for a child to be called."""
        return any(m is not None and (m._forward_hooks or m._forward_pre_hooks or m._backward_hooks) for m in self.all)

    def why_layered(self) -> str | None:
        """Why one call cannot compute what these modules do; None if it can."""
        every = [n for group in self.norms for n in group]
        for n in every:
            if type(n) is not nn.BatchNorm2d:
                return f"a norm is a {type(n).__name__}"
            if n._parameters["weight"] is None or n._parameters["bias"] is None:
                return "a norm has neither gamma nor beta"
        if len({n.training or n._buffers["running_mean"] is None for n in every}) > 1:
            return "some norms use batch statistics and others running ones"
        if len({n.eps for n in every}) > 1:
            return "the norms differ in eps"
        for r in self.reduces:
            if type(r) is not LearnedGroupConv2d or r.activation != "relu":
                return f"a 1x1 is a {type(r).__name__} without a mask, or its activation is no ReLU"
        if len({(r.dropout, r.training) for r in self.reduces}) > 1:
            return "the paths differ in dropout"
        for c in self.convs:
            if type(c) not in (nn.Conv2d, RSDC2d) or getattr(c, "resample", "never") != "never":
                return f"a 3x3 is a {type(c).__name__}, or draws its taps anew"
        shapes = {(c.kernel_size, c.groups, c.stride, c.dilation, c.padding, c.padding_mode) for c in self.convs}
        side = self.convs[0].kernel_size[0]
        plain = {(1, 1)}, {(side // 2, side // 2), "same"}, {"zeros"}
        if any(not ({s[2], s[3]} <= plain[0] and s[4] in plain[1] and s[5] in plain[2]) for s in shapes):
            return "a 3x3 has other strides or paddings"
        if len(shapes) > 1 or any(type(a) is not nn.ReLU for a in self.acts):
            return "the 3x3 differ, or an activation is no ReLU"
        for r in self.reactivates:
            if type(r) is not SparseFeatureReactivation or r.activation != "relu":
                return f"a reactivation is a {type(r).__name__}, or its activation is no ReLU"
        return None


class Masks:
    """The masks of many layers as one factor of their packed weights, made anew when one of them changes."""

    def __init__(self) -> None:
        self.known: list[tuple[Tensor, int]] = []
        self.factor: Tensor | None = None

    def of(self, layers: Sequence[LearnedGroupConv2d | SparseFeatureReactivation], dtype: torch.dtype) -> Tensor:
        masks: list[Any] = [layer._buffers["mask"] for layer in layers]
        if tracing.recording():
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


def flat_of(modules: Sequence[nn.Module], name: str) -> Tensor:
    """One parameter of each, packed."""
    return flat([m._parameters[name] for m in modules])  # type: ignore[misc]


def rows(first: Sequence[Any], second: Sequence[Any]) -> Tensor:
    """[2, total], in the dtype that norms are computed in."""
    pair = torch.stack([torch.cat(list(first)), torch.cat(list(second))])
    return pair if pair.dtype is torch.float64 else pair.float()


def affine(norms: Norms) -> Tensor:
    return rows([n._parameters["weight"] for n in norms], [n._parameters["bias"] for n in norms])


def running(norms: Norms) -> Tensor:
    return rows([n._buffers["running_mean"] for n in norms], [n._buffers["running_var"] for n in norms])


@torch.no_grad()
def update(norms: Norms, means: Sequence[Tensor], variances: Sequence[Tensor]) -> None:
    """What BatchNorm does with batch statistics in training; ``variances`` are unbiased."""
    counts: list[Tensor] = []
    # By momentum: buffers, what comes in, and the counts.
    groups: dict[float | None, tuple[list[Tensor], list[Tensor], list[Tensor]]] = {}
    for norm, m, v in zip(norms, means, variances, strict=True):
        own = norm._buffers
        mean, var, count = own["running_mean"], own["running_var"], own["num_batches_tracked"]
        if not (norm.training and norm.track_running_stats) or mean is None or var is None:
            continue
        old, new, seen = groups.setdefault(norm.momentum, ([], [], []))
        old += (mean, var)
        new += (m, v) if mean.dtype is m.dtype else (m.to(mean.dtype), v.to(mean.dtype))
        if count is not None:
            counts.append(count)
            seen.append(count)
    if counts:
        torch._foreach_add_(counts, 1)
    for momentum, (old, new, seen) in groups.items():
        if momentum is not None:
            torch._foreach_mul_(old, 1 - momentum)
            torch._foreach_add_(old, new, alpha=momentum)
            continue
        for i, count in enumerate(seen):
            # The mean over all batches so far; the count stays on its device.
            for o, t in zip(old[2 * i : 2 * i + 2], new[2 * i : 2 * i + 2], strict=True):
                o.lerp_(t, 1 / count.to(o.dtype))

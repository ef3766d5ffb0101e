"""Arithmetic of CondenseNet and MLDN layers, on tensors taken from a dictionary."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-5
MOMENTUM = 0.1


class Run:
    """One forward pass over `weights`; in training, `moved` collects the running statistics after the step."""

    def __init__(self, weights: Mapping[str, Tensor], training: bool, condensed: bool = False) -> None:
        assert not (training and condensed), "the condensed form is for evaluation"
        self.weights = weights
        self.training = training
        self.condensed = condensed
        self.moved: dict[str, Tensor] = {}

    def get(self, name: str, path: int | None = None) -> Tensor:
        value = self.weights[name]
        return value if path is None else value[path]

    def norm(self, x: Tensor, name: str, path: int | None = None, channels: Tensor | None = None) -> Tensor:
        """Batch norm; `channels` are those of the norm that x has, where it has not all of them."""
        leaves = (self.get(f"{name}.{leaf}", path) for leaf in ("gamma", "beta", "mean", "variance"))
        gamma, beta, mean, variance = (leaf if channels is None else leaf[channels] for leaf in leaves)
        if self.training:
            n = x.numel() // x.shape[1]
            mean = x.sum((0, 2, 3)) / n
            variance = ((x - mean[:, None, None]) ** 2).sum((0, 2, 3)) / n
            self._move(f"{name}.mean", path, mean)
            self._move(f"{name}.variance", path, variance * (n / (n - 1)))
        scale = gamma / torch.sqrt(variance + EPS)
        return (x - mean[:, None, None]) * scale[:, None, None] + beta[:, None, None]

    def _move(self, name: str, path: int | None, now: Tensor) -> None:
        running = self.moved.setdefault(name, self.weights[name].detach().clone())
        row = running if path is None else running[path]
        row.mul_(1 - MOMENTUM).add_(now.detach(), alpha=MOMENTUM)


def activate(x: Tensor, hswish: bool) -> Tensor:
    return x * (x + 3).clamp(0, 6) / 6 if hswish else F.relu(x)


def pointwise(x: Tensor, weight: Tensor, groups: int = 1) -> Tensor:
    return F.conv2d(x, weight[:, :, None, None], groups=groups)


def learned(x: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    """1x1 with weight (Co, Ci); output o is in group o mod G and sees the inputs that mask (G, Ci) leaves it."""
    group = torch.arange(weight.shape[0]) % mask.shape[0]
    return pointwise(x, weight * mask[group])


def survivors(mask: Tensor) -> Tensor:
    """(G, kept) positions of the ones, ascending; every row keeps equally many."""
    rows = [row.nonzero()[:, 0] for row in mask]
    assert len({len(row) for row in rows}) == 1, "groups that keep different numbers cannot be condensed"
    return torch.stack(rows)


def learned_condensed(run: Run, x: Tensor, name: str, path: int, hswish: bool) -> Tensor:
    """Gather, norm, activation, grouped 1x1, shuffle: what becomes of norm, activation and `learned`."""
    weight, mask = run.get(f"{name}squeeze", path), run.get(f"{name}mask", path)
    kept = survivors(mask)
    groups, out = kept.shape[0], weight.shape[0]
    index = kept.flatten()
    y = activate(run.norm(x[:, index], f"{name}norm1", path, index), hswish)
    grouped = torch.cat([weight[g::groups][:, kept[g]] for g in range(groups)])
    y = pointwise(y, grouped, groups)
    # Channel j G + g of the result is the j-th of group g.
    shape = (y.shape[0], groups, out // groups, *y.shape[2:])
    return y.view(shape).transpose(1, 2).reshape(y.shape)


def reactivate(x: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    """1x1 with weight (Co, κ); input i is in group i mod G and reaches the outputs that mask (G, Co) leaves it."""
    group = torch.arange(weight.shape[1]) % mask.shape[0]
    return pointwise(x, weight * mask[group].T)


def reactivate_condensed(x: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    """De-interleave, grouped 1x1, and the groups' results added where they belong; where none does stays 0."""
    kept = survivors(mask)
    groups = kept.shape[0]
    y = torch.cat([x[:, g::groups] for g in range(groups)], 1)
    y = pointwise(y, torch.cat([weight[kept[g], g::groups] for g in range(groups)]), groups)
    out = x.new_zeros(x.shape[0], weight.shape[0], *x.shape[2:])
    return out.index_add(1, kept.flatten(), y)


def rsdc(x: Tensor, weight: Tensor, taps: Tensor, bias: Tensor | None, k: int, groups: int) -> Tensor:
    """k x k convolution whose weight is zero but for the cells that taps (Co, 9) give to weight (Co, Ci/groups, 9)."""
    cells = weight.new_zeros(*weight.shape[:2], k * k)
    cells = cells.scatter(2, taps[:, None, :].expand_as(weight), weight)
    return F.conv2d(x, cells.view(*weight.shape[:2], k, k), bias, padding=k // 2, groups=groups)


def excite(run: Run, x: Tensor, name: str) -> Tensor:
    gate = F.relu(F.linear(x.mean((2, 3)), run.get(f"{name}.down")))
    return x * torch.sigmoid(F.linear(gate, run.get(f"{name}.up")))[:, :, None, None]

"""Learned groups: 1x1 convolutions that find out in training, by pruning, which channels each group needs."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightkernels._core.spec import fail_type, require
from lightkernels.nn import _arguments
from lightkernels.nn.condensed import (
    ACTIVATIONS,
    Act,
    Condensable,
    CondensedConv2d,
    CondensedReactivation,
    like,
    picked_norm,
)

_LEAST = 1e-6  # of a group's sum of squares in the lasso, whose root has no slope at zero


class Prunable(Condensable):
    """BatchNorm, activation, and a 1x1 convolution under a mask ``[groups, choices]`` that is thinned out in stages.

    A group chooses among the convolution's inputs or its outputs, ``choices`` of them, and ends with
    ``choices / condense_factor``.
    """

    mask: Tensor
    stage: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        choices: str,
        groups: int,
        condense_factor: int,
        activation: Act,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        op = type(self).__name__
        sizes = {
            "in_channels": _arguments.positive_int(op, "in_channels", in_channels),
            "out_channels": _arguments.positive_int(op, "out_channels", out_channels),
        }
        self.in_channels, self.out_channels = in_channels, out_channels
        self.groups = _arguments.positive_int(op, "groups", groups)
        self.condense_factor = _arguments.positive_int(op, "condense_factor", condense_factor)
        (grouped,) = sizes.keys() - {choices}
        require(sizes[grouped] % groups == 0, op, "groups", f"divide {grouped}, {sizes[grouped]}", groups)
        fits = sizes[choices] % condense_factor == 0
        require(fits, op, "condense_factor", f"divide {choices}, {sizes[choices]}", condense_factor)
        _arguments.one_of(op, "activation", activation, ACTIVATIONS)
        self.activation = activation
        self.norm = nn.BatchNorm2d(in_channels, device=device, dtype=dtype)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, device=device, dtype=dtype))
        self.register_buffer("mask", torch.empty(groups, sizes[choices], dtype=torch.bool, device=device))
        self.register_buffer("stage", torch.empty((), dtype=torch.int64, device=device))
        # The buffer's value, so that nobody has to ask the device for it.
        self.reached = 0
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights normal with variance ``2 / out_channels``, the norm as new, and every choice open again."""
        nn.init.normal_(self.weight, std=math.sqrt(2 / self.out_channels))
        self.norm.reset_parameters()
        self.mask.fill_(True)
        self._reach(0)

    def _reach(self, stage: int) -> None:
        self.reached = stage
        self.stage.fill_(stage)

    def _sums(self, values: Tensor) -> Tensor:
        """[groups, choices]: sums of values ``[out_channels, in_channels]`` over the members of each group."""
        raise NotImplementedError

    @property
    def last_stage(self) -> int:
        return self.condense_factor - 1

    def set_progress(self, progress: float) -> bool:
        """Goes through every stage that is due at ``progress`` of the training; whether there was one."""
        # A little over, so that s / (2 last) reaches stage s whatever its rounding.
        due = min(self.last_stage, int(2 * progress * self.last_stage + 1e-9))
        missed = due - self.reached
        for _ in range(missed):
            self._drop()
        return missed > 0

    @torch.no_grad()
    def _drop(self) -> None:
        wide = self.weight.abs().to(torch.promote_types(self.weight.dtype, torch.float32))
        scores = self._sums(wide)
        largest = torch.finfo(scores.dtype).max
        scores = scores.nan_to_num(largest, largest).masked_fill(~self.mask, math.inf)
        worst = scores.argsort(dim=1, stable=True)[:, : self.mask.shape[1] // self.condense_factor]
        # In place: who keeps the buffer, such as DistributedDataParallel, has the new mask.
        self.mask.scatter_(1, worst, False)
        self._reach(self.reached + 1)

    def masked_weight(self) -> Tensor:
        """[out_channels, in_channels], differentiable: the weight where the mask is, zero elsewhere."""
        raise NotImplementedError

    def lasso(self) -> Tensor:
        """The sum, over groups and choices, of the root of a group's squared weights (each sum at least 1e-6)."""
        return self._sums(self.masked_weight().square()).clamp(min=_LEAST).sqrt().sum()

    def kept(self) -> Tensor:
        """int64 ``[groups, choices / condense_factor]``: what each group has chosen, ascending.

        Raises ValueError unless all pruning stages are done.
        """
        count = self.mask.shape[1] // self.condense_factor
        op, hint = f"{type(self).__name__}.condense", "set_condensation_progress(model, 1.0) does the stages left."
        # The mask itself is asked: averaged models get their buffers from elsewhere.
        done = bool((self.mask.sum(1) == count).all())
        require(done, op, "stage", f"be the last, {self.last_stage}", int(self.stage), hint)
        return self.mask.nonzero()[:, 1].view(self.groups, count)

    def counts(self, convention: str, pixels: int) -> tuple[int, int]:
        """Parameters and operations for a map of so many pixels, as if condensed, under a convention of
        :func:`lightkernels.models.count`: ``"macs"``, ``"condensenet"`` or ``"converted"``."""
        weights = self.weight.numel() // self.condense_factor
        read = self.groups * self.kept_inputs if convention == "converted" else self.in_channels
        norm = 2 * read if self.norm.affine else 0
        if convention == "macs":
            return sum(p.numel() for p in self.parameters()), weights * pixels
        return weights + norm, (weights + read) * pixels

    @property
    def kept_inputs(self) -> int:
        """How many inputs a group reads after condensation."""
        raise NotImplementedError

    def stated_count(self, convention: str, x: Tensor, y: Tensor) -> tuple[int, int]:
        return self.counts(convention, y.shape[2] * y.shape[3])

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        metadata: Any,
        strict: bool,
        missing: Any,
        extra: Any,
        errors: Any,
    ) -> None:
        mask: Any = state_dict.get(prefix + "mask")
        stage: Any = state_dict.get(prefix + "stage")
        there = isinstance(mask, Tensor) and isinstance(stage, Tensor) and mask.shape == self.mask.shape
        if there and not (mask.is_meta or stage.is_meta):
            reached, choices = int(stage), self.mask.shape[1]
            left = choices - reached * (choices // self.condense_factor)
            if not 0 <= reached <= self.last_stage or bool((mask.sum(1) != left).any()):
                errors.append(f"{prefix}mask: not a mask of stage {reached} of {self.last_stage}")
                return
            self.reached = reached
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, extra, errors)

    def extra_repr(self) -> str:
        sizes = f"{self.in_channels}, {self.out_channels}, groups={self.groups}"
        return f"{sizes}, condense_factor={self.condense_factor}, stage={self.reached} of {self.last_stage}"


class LearnedGroupConv2d(Prunable):
    """BatchNorm, activation, dropout, and a 1x1 convolution whose groups learn which inputs they need.

    Shapes: input ``[N, in_channels, H, W]``, output ``[N, out_channels, H, W]``. Output o belongs to group
    ``o % groups``. At each of ``condense_factor - 1`` stages every group loses ``in_channels / condense_factor``
    inputs, those with the smallest sums of absolute weights among what it has left, and keeps as many in the end;
    groups may keep the same inputs. :func:`set_condensation_progress` brings the stages on.

    Args:
        groups: divides out_channels. condense_factor: divides in_channels.
        dropout: share of the activations dropped in training, before the convolution.
        activation: ``"relu"`` or ``"hardswish"``.

    Child: ``norm``. Parameter: ``weight`` ``[out_channels, in_channels]``, normal with variance ``2 / out_channels``.
    Buffers: ``mask`` bool ``[groups, in_channels]`` and ``stage`` int64; both are in the state dict. Weights under the
    mask keep their values and get no gradient.

    Raises TypeError and ValueError at construction for arguments that fit no layer.

    Equivalent to: ``F.conv2d(F.relu(layer.norm(x)), layer.masked_weight()[:, :, None, None])`` in evaluation

    >>> import torch, lightkernels as lk
    >>> layer = lk.nn.LearnedGroupConv2d(16, 8, groups=2, condense_factor=4)
    >>> lk.nn.set_condensation_progress(layer, 0.5), layer.mask.sum(1).tolist()
    (1, [4, 4])
    >>> layer.condense().weight.shape
    torch.Size([8, 4])

    Source: Huang et al., CondenseNet: An Efficient DenseNet using Learned Group Convolutions, Section 3.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        groups: int = 4,
        condense_factor: int = 4,
        dropout: float = 0.0,
        activation: Act = "relu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, "in_channels", groups, condense_factor, activation, device, dtype)
        self.dropout = _arguments.share(type(self).__name__, "dropout", dropout)

    def _sums(self, values: Tensor) -> Tensor:
        return values.view(-1, self.groups, self.in_channels).sum(0)

    def masked_weight(self) -> Tensor:
        grouped = self.weight.view(-1, self.groups, self.in_channels)
        return (grouped * self.mask).view(self.out_channels, self.in_channels)

    @property
    def kept_inputs(self) -> int:
        return self.in_channels // self.condense_factor

    def forward(self, x: Tensor) -> Tensor:
        x = ACTIVATIONS[self.activation](self.norm(x))
        if self.dropout:
            x = F.dropout(x, self.dropout, self.training)
        return F.conv2d(x, self.masked_weight()[:, :, None, None])

    def condense(self) -> CondensedConv2d:
        """A new layer of equal output in evaluation, with ``1 / condense_factor`` of the weights."""
        index = self.kept()
        layer = CondensedConv2d(
            self.in_channels,
            self.out_channels,
            groups=self.groups,
            kept=index.shape[1],
            dropout=self.dropout,
            activation=self.activation,
            device=self.weight.device,
            dtype=self.weight.dtype,
        )
        layer.norm = picked_norm(self.norm, index.flatten())
        with torch.no_grad():
            layer.index.copy_(index)
            layer.weight.copy_(self.weight.gather(1, index.repeat(self.out_channels // self.groups, 1)))
        return like(layer, self)


class SparseFeatureReactivation(Prunable):
    """BatchNorm, activation, and a 1x1 convolution whose groups learn which outputs they update: the reuse of new
    features in old ones.

    Shapes: input h ``[N, in_channels, H, W]`` and optionally x ``[N, out_channels, H, W]``, which the result is added
    to; output ``[N, out_channels, H, W]``. Input i belongs to group ``i % groups``. At each of ``condense_factor - 1``
    stages every group loses ``out_channels / condense_factor`` outputs, those with the smallest sums of absolute
    weights.

    Args:
        groups: divides in_channels. condense_factor: divides out_channels.
        activation: ``"relu"`` or ``"hardswish"``.
        zero_init: start with the norm's scale at zero, so that nothing is added at first.

    Child: ``norm``. Parameter: ``weight`` ``[out_channels, in_channels]``, normal with variance ``2 / out_channels``.
    Buffers: ``mask`` bool ``[groups, out_channels]`` and ``stage`` int64; both are in the state dict.

    Raises TypeError and ValueError at construction for arguments that fit no layer.

    Equivalent to: ``x + F.conv2d(F.relu(layer.norm(h)), layer.masked_weight()[:, :, None, None])``

    >>> import torch, lightkernels as lk
    >>> layer = lk.nn.SparseFeatureReactivation(8, 16)
    >>> layer(torch.randn(2, 8, 5, 5), torch.randn(2, 16, 5, 5)).shape
    torch.Size([2, 16, 5, 5])

    Source: Yang et al., CondenseNet V2: Sparse Feature Reactivation for Deep Networks, Section 3.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        groups: int = 4,
        condense_factor: int = 4,
        activation: Act = "relu",
        zero_init: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.zero_init = zero_init
        super().__init__(in_channels, out_channels, "out_channels", groups, condense_factor, activation, device, dtype)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.zero_init:
            nn.init.zeros_(self.norm.weight)

    def _sums(self, values: Tensor) -> Tensor:
        return values.view(self.out_channels, -1, self.groups).sum(1).t()

    def masked_weight(self) -> Tensor:
        grouped = self.weight.view(self.out_channels, -1, self.groups)
        return (grouped * self.mask.t()[:, None]).view(self.out_channels, self.in_channels)

    @property
    def kept_inputs(self) -> int:
        return self.in_channels // self.groups

    def forward(self, h: Tensor, x: Tensor | None = None) -> Tensor:
        h = ACTIVATIONS[self.activation](self.norm(h))
        r = F.conv2d(h, self.masked_weight()[:, :, None, None])
        return r if x is None else x + r

    def condense(self) -> CondensedReactivation:
        """A new layer of equal output in evaluation, with ``1 / condense_factor`` of the weights."""
        index = self.kept()
        layer = CondensedReactivation(
            self.in_channels,
            self.out_channels,
            groups=self.groups,
            kept=index.shape[1],
            activation=self.activation,
            device=self.weight.device,
            dtype=self.weight.dtype,
        )
        layer.norm = picked_norm(self.norm, torch.arange(self.in_channels, device=self.weight.device))
        with torch.no_grad():
            layer.index.copy_(index)
            inputs = torch.arange(self.in_channels, device=self.weight.device).view(-1, self.groups).t()
            layer.weight.copy_(self.weight[index[:, :, None], inputs[:, None]].flatten(0, 1))
        return like(layer, self)


def set_condensation_progress(model: nn.Module, progress: float) -> int:
    """Prunes every learned group of ``model`` to the stage that is due; call it before each step, or each epoch.

    Args:
        model: any module.
        progress: the share of the training that is over, from 0 to 1, a plain number. A layer with condense factor C
            has its C - 1 stages at ``s / (2 (C - 1))``, all in the first half; stages that were missed, by a jump or
            because training went on from a checkpoint, are gone through one after another. Nothing is ever undone.

    Returns:
        How many layers were pruned. Nothing waits for the device.

    Raises TypeError and ValueError for other arguments.

    Equivalent to: ``layer.set_progress(progress)`` for every such layer of the model

    >>> import torch, lightkernels as lk
    >>> layer = lk.nn.LearnedGroupConv2d(16, 8)
    >>> [lk.nn.set_condensation_progress(layer, t) for t in (0, 0.1, 0.2, 0.25, 0.9)], layer.reached
    ([0, 0, 1, 0, 1], 3)
    """
    op = "set_condensation_progress"
    if not isinstance(model, nn.Module):
        fail_type(op, "model", "be an nn.Module", model)
    if not isinstance(progress, int | float) or isinstance(progress, bool):
        fail_type(op, "progress", "be a plain number", progress)
    require(0 <= progress <= 1, op, "progress", "be from 0 to 1", progress)
    return sum(layer.set_progress(progress) for layer in model.modules() if isinstance(layer, Prunable))


def group_lasso(model: nn.Module) -> Tensor:
    """The regulariser that draws a group's weights of one input to zero together, for the loss: ``+ 1e-5 * this``.

    It counts layers with pruning stages left, and is zero where there are none; CondenseNet used it for ImageNet alone.

    Returns:
        A scalar, differentiable in the weights.

    Equivalent to: the sum of ``layer.lasso()`` over the layers of the model that are not yet at their last stage

    >>> import torch, lightkernels as lk
    >>> bool(lk.nn.group_lasso(lk.nn.LearnedGroupConv2d(16, 8)) > 0)
    True
    """
    if not isinstance(model, nn.Module):
        fail_type("group_lasso", "model", "be an nn.Module", model)
    layers = [layer for layer in model.modules() if isinstance(layer, Prunable) and layer.reached < layer.last_stage]
    if not layers:
        weight = next(model.parameters(), torch.zeros(()))
        return torch.zeros((), dtype=weight.dtype, device=weight.device)
    return torch.stack([layer.lasso() for layer in layers]).sum()

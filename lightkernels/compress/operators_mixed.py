"""A 1x1 convolution and the norm after it as one step of the active operator: what is between them is never stored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from lightkernels.compress.channel_norm import Act, mixed_again, mixed_norm
from lightkernels.compress.operators_layers import GroupedConv2d, Shuffle, leaving
from lightkernels.compress.operators_passes import (
    Again,
    Repeats,
    Value,
    gate_grads,
    gate_of,
    kept_of_base,
    refuse_second,
)

# Inputs of a filter beyond which making its output three times costs more than storing it.
_FEW = 16


def can_mix(conv: nn.Module, norm: nn.Module, x: Tensor) -> bool:
    """Whether the active operator may run these two as one: nobody sees what is between."""
    if type(conv) is not GroupedConv2d or type(norm) is not nn.BatchNorm2d or not norm.training:
        return False
    if conv.in_channels > _FEW * conv.groups or type(x) is not Tensor or not x.is_cpu:
        return False
    if x.dtype is not torch.float32 or not x.numel():
        return False
    if not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or leaving():
        return False
    return not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in (conv, norm))


def mixed_norm_act(
    conv: GroupedConv2d,
    norm: nn.BatchNorm2d,
    d: Tensor,
    act: Act = "none",
    shuffle: nn.Module | None = None,
    repeats: Repeats | None = None,
    base: Tensor | None = None,
    again: Again | None = None,
) -> Tensor | None:
    """``norm_act(norm, conv(d), ...)`` of the active operator; None where there are no kernels for it."""
    if d.numel() == d.shape[1]:
        return None
    groups = shuffle.groups if isinstance(shuffle, Shuffle) else 1
    kernels = mixed_norm(conv, norm, d.detach(), act, groups)
    if kernels is None:
        return None
    args = (
        kernels,
        norm,
        conv.groups,
        act,
        groups,
        repeats,
        again,
        d,
        conv.weight,
        norm.weight,
        norm.bias,
        base,
        *gate_of(norm),
    )
    out: Tensor = _MixedNormAct.apply(*args)  # type: ignore[no-untyped-call]
    return out


class _MixedNormAct(Function):
    """Keeps the convolution's input alone."""

    @staticmethod
    def forward(
        ctx: Any,
        kernels: Any,
        norm: nn.BatchNorm2d,
        of: int,
        act: Act,
        groups: int,
        repeats: Repeats | None,
        again: Again | None,
        d: Tensor,
        w: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        base: Tensor | None,
        alpha: Tensor | None = None,
        column: Tensor | None = None,
    ) -> Tensor:
        y: Tensor
        y, kept = kernels.forward(norm, base, count=True)
        ctx.how = of, act, groups
        if repeats is not None:
            other = None if base is None else base.detach()
            repeats.append(lambda: kernels.apply(kept, other))
        ctx.save_for_backward(d, w, weight, bias, kept, *kept_of_base(ctx, base, column, again))
        ctx.column, ctx.added = column, base is not None
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second()
        d, w, weight, bias, kept, *base = ctx.saved_tensors
        need = ctx.needs_input_grad[7:11]
        own: Value
        gd, gw, (dw, db), own = mixed_again(w, d, *ctx.how).backward(g, weight, bias, kept)
        weights = gw if need[1] else None, dw if need[2] else None, db if need[3] else None
        grads = None, None, None, None, None, None, None, gd if need[0] else None, *weights, g if ctx.added else None
        return *grads, *gate_grads(ctx, own, g, base)

"""Seconds of a training step: our kernels against the same network in plain PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightkernels._core import measure
from lightkernels.nn import MultiDepthwiseConv2d
from lightkernels.ops.multi_dwconv2d.reference import forward

OURS = ("lightkernels, channels_last", "lightkernels, NCHW")
PLAIN = ("PyTorch eager, channels_last", "PyTorch eager, NCHW")
COMPILED = "torch.compile, channels_last"
Step = Callable[[], object]


class PlainLayer(nn.Module):
    """A multi-kernel depthwise layer as one writes it in PyTorch: an ``F.conv2d`` a branch and autograd's gradients."""

    def __init__(self, layer: MultiDepthwiseConv2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        return forward(
            x,
            list(layer.branches.parameters()),
            layer.bias,
            stride=layer.stride,
            dilations=layer.dilations,
            combine=layer.combine,
            split=layer.split,
        )


def plain(model: nn.Module) -> nn.Module:
    """A copy of ``model`` whose multi-kernel depthwise layers are plain PyTorch."""
    if isinstance(model, MultiDepthwiseConv2d):
        return PlainLayer(copy.deepcopy(model))
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, MultiDepthwiseConv2d):
                setattr(module, name, PlainLayer(child))
    return model


def _step(model: nn.Module, images: Tensor, loss: Callable[[Tensor], Tensor], last: bool) -> Step:
    """A call that computes the loss of a fresh copy of ``model`` and all its gradients."""
    layout = torch.channels_last if last else torch.contiguous_format
    model = model.to(memory_format=layout).train()  # type: ignore[call-overload]
    x = images.detach().contiguous(memory_format=layout)
    parameters = [p for p in model.parameters() if p.requires_grad]

    def run() -> tuple[Tensor, ...]:
        gradients = torch.autograd.grad(loss(model(x)), parameters)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        return gradients

    return run


def training_step(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Step]:
    """Forward and backward of the whole network, in both layouts, ours and plain."""

    def loss(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels)

    steps = {}
    for last, ours, theirs in zip((True, False), OURS, PLAIN, strict=True):
        steps[ours] = _step(copy.deepcopy(model), images, loss, last)
        steps[theirs] = _step(plain(model), images, loss, last)
    return steps


def block_step(block: nn.Module, x: Tensor, compiled: bool) -> dict[str, Step]:
    """Forward and backward of one block in channels_last: ours, plain, and plain through torch.compile."""

    def loss(y: Tensor) -> Tensor:
        return y.square().mean()

    steps = {
        OURS[0]: _step(copy.deepcopy(block), x, loss, True),
        PLAIN[0]: _step(plain(block), x, loss, True),
    }
    if compiled:
        fast = cast(nn.Module, torch.compile(plain(block), dynamic=False))
        steps[COMPILED] = _step(fast, x, loss, True)
    return steps


def seconds(steps: dict[str, Step], rounds: int = 5, min_time: float = 0.2) -> dict[str, float]:
    """The least time of each candidate, taken in turn."""
    timings = measure.interleaved(steps, rounds=rounds, min_time=min_time)
    return {name: timing.min for name, timing in timings.items()}

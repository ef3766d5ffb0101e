"""A trained network's kernels against the reference: which backend ran each layer, and how far the results differ."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightkernels import explain, use_backend
from lightkernels._core.spec import layout_of
from lightkernels.nn import MultiDepthwiseConv2d
from lightkernels.train.loop import predict


@dataclass(frozen=True)
class LayerRun:
    """One layer in one forward pass. ``backend`` is None where none could run it."""

    name: str
    shape: tuple[int, ...]
    kernels: tuple[int, ...]
    combine: str
    layout: str
    backend: str | None


@dataclass(frozen=True)
class Agreement:
    """Results of the same computation on two backends against float64 truth (see docs/design.md, numerics).

    The RMS error of ours may be at most ``bound``: twice the reference's plus one unit in the last place of the
    RMS of the truth. ``largest`` is the largest difference between ours and the reference.
    """

    name: str
    largest: float
    error: float
    reference_error: float
    bound: float

    @property
    def holds(self) -> bool:
        return self.error <= self.bound

    @classmethod
    def of(cls, name: str, ours: Tensor, reference: Tensor, truth: Tensor) -> Agreement:
        reference_error = rms(reference - truth)
        return cls(
            name,
            float((ours.double() - reference.double()).abs().max()),
            rms(ours - truth),
            reference_error,
            2 * reference_error + torch.finfo(ours.dtype).eps * rms(truth),
        )


def rms(t: Tensor) -> float:
    return float(t.double().square().mean().sqrt())


def layers(model: nn.Module) -> Iterator[tuple[str, MultiDepthwiseConv2d]]:
    """The multi-kernel depthwise layers of a network, with their names."""
    for name, module in model.named_modules():
        if isinstance(module, MultiDepthwiseConv2d):
            yield name, module


def _call(layer: MultiDepthwiseConv2d) -> dict[str, object]:
    return {"stride": layer.stride, "dilations": layer.dilations, "combine": layer.combine, "split": layer.split}


@contextmanager
def recording(model: nn.Module) -> Iterator[list[LayerRun]]:
    """Inside, every forward pass of ``model`` appends one entry a layer: the backend that ``explain`` names for it."""
    runs: list[LayerRun] = []

    def note(name: str, layer: MultiDepthwiseConv2d, x: Tensor) -> None:
        found = explain("multi_dwconv2d", x, list(layer.branches.parameters()), layer.bias, **_call(layer))
        layout = layout_of(x.shape, x.stride())
        runs.append(LayerRun(name, tuple(x.shape), layer.kernel_sizes, layer.combine, layout, found.chosen))

    def hook(name: str, layer: MultiDepthwiseConv2d) -> torch.utils.hooks.RemovableHandle:
        return layer.register_forward_hook(lambda module, inputs, output: note(name, layer, inputs[0]))

    handles = [hook(name, layer) for name, layer in layers(model)]
    try:
        yield runs
    finally:
        for handle in handles:
            handle.remove()


def compare_outputs(model: nn.Module, images: Tensor) -> Agreement:
    """The network's logits with the backend in force, with the reference, and in float64."""
    ours = predict(model, images)
    with use_backend("reference"):
        reference = predict(model, images)
        truth = predict(copy.deepcopy(model).double(), images.double())
    return Agreement.of("logits", ours, reference, truth)


def compare_layers(model: nn.Module, images: Tensor) -> list[Agreement]:
    """Every layer's output, input gradient and weight gradient, on the activations that ``images`` give it.

    Each layer is compared alone: one input and one output gradient for ours, the reference and float64.
    """
    found: list[Agreement] = []
    seen: dict[str, tuple[MultiDepthwiseConv2d, Tensor]] = {}

    def catch(name: str, layer: MultiDepthwiseConv2d) -> torch.utils.hooks.RemovableHandle:
        return layer.register_forward_hook(lambda module, inputs, out: seen.update({name: (layer, inputs[0])}))

    handles = [catch(name, layer) for name, layer in layers(model)]
    try:
        predict(model, images, batch=len(images))
    finally:
        for handle in handles:
            handle.remove()
    draw = torch.Generator().manual_seed(0)
    for name, (layer, x) in seen.items():
        with torch.no_grad():
            g = torch.randn(layer(x).shape, generator=draw).to(x).contiguous(memory_format=_format(x))
        ours = _passes(layer, x, g)
        with use_backend("reference"):
            reference = _passes(layer, x, g)
            truth = _passes(copy.deepcopy(layer).double(), x.double(), g.double())
        for what, *three in zip(("output", "input gradient", "weight gradient"), ours, reference, truth, strict=True):
            found.append(Agreement.of(f"{name}: {what}", *three))
    return found


def _format(x: Tensor) -> torch.memory_format:
    return torch.channels_last if layout_of(x.shape, x.stride()) == "nhwc" else torch.contiguous_format


def _passes(layer: MultiDepthwiseConv2d, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output, input gradient and all weight gradients in one vector."""
    x = x.detach().requires_grad_()
    weights = list(layer.branches.parameters())
    with torch.enable_grad():
        y = layer(x)
    dx, *dw = torch.autograd.grad(y, [x, *weights], g)
    return y.detach(), dx, torch.cat([w.reshape(-1) for w in dw])

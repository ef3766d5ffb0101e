"""The leaves of the operators: torch's layers, run on our kernels where those are faster."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightkernels._core import taps as sets
from lightkernels._core import tracing
from lightkernels.functional import multi_dwconv2d, rsdc2d, rsdc2d_moments
from lightkernels.nn import MultiDepthwiseConv2d, RSDC2d

# Channels a filter sees: up to here our kernels are the faster ones on the CPU, as measured with 16 to 512 channels.
_NARROW = 64


def leaving() -> bool:
    """Whether the call is recorded for another runtime, which has none of our operators."""
    return tracing.state() is not None or torch.onnx.is_in_onnx_export()


class GroupedConv2d(nn.Conv2d):
    """``nn.Conv2d`` without bias and with same padding; narrow ones of the CPU run as all taps of their window."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=kernel_size // 2,
            groups=groups,
            bias=False,
            device=device,
            dtype=dtype,
        )
        # No buffer: it belongs to the CPU alone, whatever becomes of the parameters, and a module built on meta has it.
        self.cells = torch.arange(kernel_size * kernel_size, device="cpu")[None]
        sets.trust(self.cells, kernel_size)

    def forward(self, input: Tensor) -> Tensor:
        if self.in_channels > _NARROW * self.groups or not input.is_cpu or leaving():
            return super().forward(input)
        return rsdc2d(
            input,
            self.weight.flatten(2),
            self.cells,
            kernel_size=self.kernel_size[0],
            stride=(self.stride[0], self.stride[1]),
            groups=self.groups,
        )

    def moments(self, x: Tensor, g: Tensor, shuffled: int = 1) -> Tensor | None:
        """Sums over the output and the gradient: see `rsdc2d_moments`. None where none can be taken."""
        if self.kernel_size != (3, 3) or self.stride != (1, 1) or self.in_channels > _NARROW * self.groups:
            return None
        if type(x) is not Tensor or not x.is_cpu or leaving():
            return None
        if x.dtype is not torch.float32 or self.weight.dtype is not torch.float32:
            return None
        return rsdc2d_moments(x, self.weight.detach().flatten(2), self.cells, g, groups=self.groups, shuffled=shuffled)


class DepthwiseConv2d(nn.Conv2d):
    """``nn.Conv2d`` with a filter a channel, without bias and with same padding, run by our depthwise operator."""

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            channels,
            channels,
            kernel_size,
            stride=stride,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            groups=channels,
            bias=False,
            device=device,
            dtype=dtype,
        )

    def forward(self, input: Tensor) -> Tensor:
        if leaving():
            return super().forward(input)
        stride = (self.stride[0], self.stride[1])
        return multi_dwconv2d(input, [self.weight], stride=stride, dilations=self.dilation[0])


class Shuffle(nn.Module):
    """Channel ``i * C / groups + j`` goes to ``j * groups + i``, so that the next groups see all of these."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        if not leaving():
            return F.channel_shuffle(x, self.groups)
        # Without the size of the batch in it, which torch's own operator leaves in an exported graph.
        y: Tensor = x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)
        return y

    def extra_repr(self) -> str:
        return f"groups={self.groups}"


class ParallelDepthwise(nn.Module):
    """What :class:`MultiDepthwiseConv2d` computes, by torch's layers alone; the same state dict."""

    def __init__(self, layer: MultiDepthwiseConv2d) -> None:
        super().__init__()
        self.branches, self.combine, self.split = layer.branches, layer.combine, layer.split
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        convs = list(self.branches)
        parts = x.split([conv.in_channels for conv in convs], 1) if self.split else [x] * len(convs)
        outputs: list[Tensor] = [conv(part) for conv, part in zip(convs, parts, strict=True)]
        if self.combine == "cumulative":
            outputs = [sum(outputs[1 : i + 1], outputs[0]) for i in range(len(outputs))]
        y = sum(outputs[1:], outputs[0]) if self.combine == "add" else torch.cat(outputs, 1)
        return y if self.bias is None else y + self.bias[:, None, None]


def _plain_leaf(layer: nn.Module) -> nn.Module:
    """The layer itself, or torch's layer in its place, with the same parameters."""
    if isinstance(layer, MultiDepthwiseConv2d):
        return ParallelDepthwise(layer)
    if isinstance(layer, RSDC2d):
        return layer.to_conv2d()
    if not isinstance(layer, GroupedConv2d | DepthwiseConv2d):
        return layer
    with torch.device("meta"):
        conv = nn.Conv2d(
            layer.in_channels,
            layer.out_channels,
            (layer.kernel_size[0], layer.kernel_size[1]),
            (layer.stride[0], layer.stride[1]),
            layer.padding if isinstance(layer.padding, str) else (layer.padding[0], layer.padding[1]),
            (layer.dilation[0], layer.dilation[1]),
            layer.groups,
            bias=False,
        )
    conv.weight = layer.weight
    return conv.train(layer.training)


def plain(module: nn.Module) -> nn.Module:
    """A deep copy in which the layers that call our kernels are layers of torch; the same function and state dict.

    For runtimes without our operators. An RSDC layer becomes a dense convolution, zero but for its taps; all other
    layers keep their parameters' names and shapes.

    Equivalent to: ``module`` itself, up to rounding.
    """
    copied = copy.deepcopy(module)
    top = _plain_leaf(copied)
    seen: dict[int, nn.Module] = {}
    for parent in list(top.modules()):
        for name, child in list(parent.named_children()):
            if id(child) not in seen:
                seen[id(child)] = _plain_leaf(child)
            if seen[id(child)] is not child:
                setattr(parent, name, seen[id(child)])
    return top

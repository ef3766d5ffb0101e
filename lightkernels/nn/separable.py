"""Depthwise-separable blocks: a multi-kernel depthwise layer, what stands between, a pointwise layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lightkernels.nn import _arguments
from lightkernels.nn.multi_depthwise import Combine, MultiDepthwiseConv2d

StrideAt = Literal["depthwise", "pointwise"]
Activation = Literal["relu", "relu6", "prelu"]
ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "relu": lambda channels: nn.ReLU(),
    "relu6": lambda channels: nn.ReLU6(),
    "prelu": lambda channels: nn.PReLU(channels),
}


def activation(op: str, arg: str, kind: str | Callable[[int], nn.Module], channels: int) -> nn.Module:
    """The activation called `kind`, or what the factory `kind` makes for this number of channels; PReLU per channel."""
    if callable(kind):
        return kind(channels)
    _arguments.one_of(op, arg, kind, ACTIVATIONS)
    return ACTIVATIONS[kind](channels)


class DepthwiseSeparable2d(nn.Module):
    """``depthwise -> [norm1] -> [act1] -> pointwise -> [norm2] -> [act2]``, with what is asked for and nothing else.

    Shapes: input ``[N, in_channels, H, W]``, output ``[N, out_channels, ceil(H / s), ceil(W / s)]``.
    Without norms, 3-D input is accepted too, as by the layers it is made of.

    Args:
        kernel_sizes, combine, split, dilations: of the depthwise layer, see :class:`MultiDepthwiseConv2d`.
        stride: of the whole block.
        stride_at: the layer that carries the stride. Both are the same function in evaluation; in training
            a norm between them sees all positions ("pointwise") or the sampled ones only ("depthwise", cheaper).
        mid_norm, mid_act: what stands between. Norms are ``nn.BatchNorm2d``; an activation is ``"relu"``, ``"relu6"``,
            ``"prelu"`` (a slope for each channel) or a callable from the number of channels to a module.
        pointwise_bias: bias of the 1x1 layer.
        out_norm, out_act: what follows the 1x1 layer.

    Children: ``depthwise``, ``norm1``, ``act1``, ``pointwise``, ``norm2``, ``act2``; those not asked for are ``None``.

    ==========================  =======================================================================
    block                       arguments
    ==========================  =======================================================================
    DSConv (Multiception paper)  ``kernel_sizes=3, pointwise_bias=True, mid_norm=False``
    MobileNetV2, second half     ``kernel_sizes=3, mid_act="relu6"``
    MixConv                      ``kernel_sizes=(3, 5, 7), split=True``
    PydMobileNet                 ``kernel_sizes=(3, 5, 7), combine="add", mid_act="relu"`` (or "concat")
    dilated pyramid (Nguyen)     ``kernel_sizes=(3, 3, 3), dilations=(1, 2, 3), mid_act="prelu"``
    ==========================  =======================================================================

    Equivalent to: ``block.norm2(block.pointwise(block.norm1(block.depthwise(x))))``   (the default arguments)

    >>> import torch, lightkernels as lk
    >>> block, x = lk.nn.DepthwiseSeparable2d(8, 16).eval(), torch.randn(2, 8, 9, 9)
    >>> torch.equal(block(x), block.norm2(block.pointwise(block.norm1(block.depthwise(x)))))
    True
    """

    norm1: nn.Module | None
    act1: nn.Module | None
    norm2: nn.Module | None
    act2: nn.Module | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_sizes: int | Sequence[int] = 3,
        *,
        stride: int | tuple[int, int] = 1,
        stride_at: StrideAt = "depthwise",
        combine: Combine = "concat",
        split: bool = False,
        dilations: int | Sequence[int] = 1,
        mid_norm: bool = True,
        mid_act: Activation | Callable[[int], nn.Module] | None = None,
        pointwise_bias: bool = False,
        out_norm: bool = True,
        out_act: Activation | Callable[[int], nn.Module] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        op = type(self).__name__
        _arguments.positive_int(op, "in_channels", in_channels)
        _arguments.positive_int(op, "out_channels", out_channels)
        _arguments.one_of(op, "stride_at", stride_at, ("depthwise", "pointwise"))
        pair = _arguments.int_pair(op, "stride", stride)
        one = (1, 1)
        self.stride_at: StrideAt = stride_at
        self.depthwise = MultiDepthwiseConv2d(
            in_channels,
            kernel_sizes,
            stride=pair if stride_at == "depthwise" else one,
            dilations=dilations,
            combine=combine,
            split=split,
            device=device,
            dtype=dtype,
        )
        middle = self.depthwise.out_channels
        self.norm1 = nn.BatchNorm2d(middle, device=device, dtype=dtype) if mid_norm else None
        self.act1 = None if mid_act is None else activation(op, "mid_act", mid_act, middle).to(device, dtype)
        self.pointwise = nn.Conv2d(
            middle,
            out_channels,
            1,
            stride=pair if stride_at == "pointwise" else one,
            bias=pointwise_bias,
            device=device,
            dtype=dtype,
        )
        self.norm2 = nn.BatchNorm2d(out_channels, device=device, dtype=dtype) if out_norm else None
        self.act2 = None if out_act is None else activation(op, "out_act", out_act, out_channels).to(device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(x)
        if self.norm1 is not None:
            x = self.norm1(x)
        if self.act1 is not None:
            x = self.act1(x)
        x = self.pointwise(x)
        if self.norm2 is not None:
            x = self.norm2(x)
        if self.act2 is not None:
            x = self.act2(x)
        return x


class Multiception2d(DepthwiseSeparable2d):
    """The Multiception layer (Bao et al.): parallel depthwise convolutions, concat, norm, pointwise with bias, norm.

    Shapes: input ``[N, in_channels, H, W]``, output ``[N, out_channels, ceil(H / s), ceil(W / s)]``.
    There is no activation inside and none at the end: the surrounding block adds its own.
    Parameters: ``C * sum(k * k) + 2 * C * M + C * M * N + N + 2 * N`` for C inputs, N outputs and M branches.

    ``stride_at="pointwise"`` is the published layer. ``"depthwise"`` is the same function in evaluation and four times
    cheaper in a layer of stride 2; in training its first norm sees a quarter of the positions.

    Children: ``depthwise``, ``norm1``, ``pointwise``, ``norm2``.

    Equivalent to: ``layer.norm2(layer.pointwise(layer.norm1(layer.depthwise(x))))``

    >>> import torch, lightkernels as lk
    >>> layer, x = lk.nn.Multiception2d(8, 16, stride=2).eval(), torch.randn(2, 8, 9, 9)
    >>> torch.equal(layer(x), layer.norm2(layer.pointwise(layer.norm1(layer.depthwise(x)))))
    True
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_sizes: int | Sequence[int] = (3, 5, 7),
        *,
        stride: int | tuple[int, int] = 1,
        stride_at: StrideAt = "pointwise",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_sizes,
            stride=stride,
            stride_at=stride_at,
            pointwise_bias=True,
            device=device,
            dtype=dtype,
        )

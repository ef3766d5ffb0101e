"""The multi-kernel depthwise layer."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from lightkernels._core.spec import require
from lightkernels.functional import multi_dwconv2d
from lightkernels.nn import _arguments

Combine = Literal["concat", "add", "cumulative"]
COMBINES = ("concat", "add", "cumulative")
torch.fx.wrap("multi_dwconv2d")


def split_channels(channels: int, branches: int) -> tuple[int, ...]:
    """Equal parts; the remainder goes to the first: 16 channels in 3 branches are 6, 5, 5."""
    part = channels // branches
    return (channels - part * (branches - 1),) + (part,) * (branches - 1)


class MultiDepthwiseConv2d(nn.Module):
    """Several depthwise convolutions of one input, read in one pass.

    Shapes: input ``[N, channels, H, W]`` or ``[channels, H, W]``, output ``[N, out_channels, ceil(H/s), ceil(W/s)]``
    with ``out_channels = channels * branches`` for ``combine="concat"`` and ``"cumulative"``, and ``channels`` for
    ``"add"`` and for ``split=True``. Channels of the output are branch-major, the order of ``torch.cat``.
    Every branch is zero padded by ``dilation * (k // 2)``, so branches always agree in size.

    Args:
        channels: input channels.
        kernel_sizes: an odd kernel size for each branch, or one int for a single branch.
        stride: int or pair, shared by all branches.
        dilations: int, or one a branch.
        combine: ``"concat"``, ``"add"`` (one merged kernel runs) or ``"cumulative"`` (running sum, written after each).
        split: each branch sees its own slice of the channels (remainder to the first) instead of all of them.
        bias: one learnable number for each output channel.
        device, dtype: of the parameters, as in ``nn.Conv2d``.

    Parameters: ``branches.0.weight`` ``[C_0, 1, k_0, k_0]``, ``branches.1.weight``, ..., ``bias`` ``[out_channels]``.
    A branch is a depthwise ``nn.Conv2d`` that holds its weight and is never called, so initialisers that look for
    ``nn.Conv2d`` find it. Each branch is initialised as ``nn.Conv2d`` would be.

    Raises TypeError and ValueError at construction for arguments that fit no layer.

    Equivalent to: ``torch.cat([branch(x) for branch in layer.branches], dim=1)``   (concat, no split, no bias)

    >>> import torch, lightkernels as lk
    >>> layer, x = lk.nn.MultiDepthwiseConv2d(8), torch.randn(2, 8, 9, 9)
    >>> torch.allclose(layer(x), torch.cat([branch(x) for branch in layer.branches], dim=1), atol=1e-5)
    True

    Sources: MixConv (Tan and Le 2019), Multiception (Bao et al.), PydMobileNet (Hoang and Jo), ESPNetv2 (Mehta et al.
    2019) and the pyramid of dilated depthwise convolutions (Nguyen) are instances of it.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        channels: int,
        kernel_sizes: int | Sequence[int] = (3, 5, 7),
        *,
        stride: int | tuple[int, int] = 1,
        dilations: int | Sequence[int] = 1,
        combine: Combine = "concat",
        split: bool = False,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        op = type(self).__name__
        self.channels = _arguments.positive_int(op, "channels", channels)
        self.kernel_sizes = _arguments.odd_kernels(op, kernel_sizes)
        self.stride = _arguments.int_pair(op, "stride", stride)
        branches = len(self.kernel_sizes)
        self.dilations = _arguments.one_per_branch(op, "dilations", dilations, branches)
        _arguments.one_of(op, "combine", combine, COMBINES)
        self.combine: Combine = combine
        self.split = _arguments.flag(op, "split", split)
        _arguments.flag(op, "bias", bias)
        hint = "summed branches must see the same channels."
        require(not split or combine == "concat", op, "split", "be False unless combine is 'concat'", split, hint=hint)
        require(not split or channels >= branches, op, "channels", f"be at least {branches} for split", channels)

        widths = split_channels(channels, branches) if split else (channels,) * branches
        self.out_channels = channels if combine == "add" else sum(widths)
        self.branches = nn.ModuleList(
            nn.Conv2d(
                width,
                width,
                size,
                stride=self.stride,
                padding=dilation * (size // 2),
                dilation=dilation,
                groups=width,
                bias=False,
                device=device,
                dtype=dtype,
            )
            for width, size, dilation in zip(widths, self.kernel_sizes, self.dilations, strict=True)
        )
        if bias:
            self.bias = nn.Parameter(torch.empty(self.out_channels, device=device, dtype=dtype))
            self.reset_bias()
        else:
            self.register_parameter("bias", None)

    def _convs(self) -> list[nn.Conv2d]:
        return cast("list[nn.Conv2d]", list(self.branches))

    @torch.no_grad()
    def reset_bias(self) -> None:
        """Uniform within 1 / sqrt(taps) of the branch that writes the channel (all branches for add and cumulative)."""
        if self.bias is None:
            return
        taps = [size * size for size in self.kernel_sizes]
        if self.combine == "add":
            nn.init.uniform_(self.bias, -(sum(taps) ** -0.5), sum(taps) ** -0.5)
            return
        start, seen = 0, 0
        for branch, count in zip(self._convs(), taps, strict=True):
            seen = seen + count if self.combine == "cumulative" else count
            stop = start + branch.weight.shape[0]
            nn.init.uniform_(self.bias[start:stop], -(seen**-0.5), seen**-0.5)
            start = stop

    def reset_parameters(self) -> None:
        """Draws every weight and the bias anew, as at construction."""
        for branch in self._convs():
            branch.reset_parameters()
        self.reset_bias()

    def forward(self, x: Tensor) -> Tensor:
        y = multi_dwconv2d(
            _arguments.batched(x),
            [branch.weight for branch in self._convs()],
            self.bias,
            stride=self.stride,
            dilations=self.dilations,
            combine=self.combine,
            split=self.split,
        )
        return _arguments.batched_as(y, x)

    def fold(self) -> nn.Module:
        """A new module that computes the same function, made for inference; this module is left as it is.

        ``add``: one depthwise ``nn.Conv2d`` of size ``max(dilation * (k - 1) + 1)``, the sum of the branch kernels,
        each spread by its dilation and placed in the centre (49 taps instead of 83 for 3 + 5 + 7). The sum is formed
        in fp32, or fp64 for fp64 weights, and rounded once. ``concat`` and ``cumulative`` have independent outputs and
        no constant to fold away: the new module is a plain copy.

        Equivalent to: ``layer.fold()(x) == layer(x)`` up to rounding.
        """
        if self.combine != "add":
            return copy.deepcopy(self)
        weights = [branch.weight for branch in self._convs()]
        radius = max(dilation * (size // 2) for size, dilation in zip(self.kernel_sizes, self.dilations, strict=True))
        folded = nn.Conv2d(
            self.channels,
            self.channels,
            2 * radius + 1,
            stride=self.stride,
            padding=radius,
            groups=self.channels,
            bias=self.bias is not None,
            device=weights[0].device,
            dtype=weights[0].dtype,
        )
        with torch.no_grad():
            wide = torch.float64 if weights[0].dtype == torch.float64 else torch.float32
            kernel = torch.zeros_like(folded.weight, dtype=wide)
            for weight, size, dilation in zip(weights, self.kernel_sizes, self.dilations, strict=True):
                reach = dilation * (size // 2)
                cells = slice(radius - reach, radius + reach + 1, dilation)
                kernel[:, :, cells, cells] += weight
            folded.weight.copy_(kernel)
            if folded.bias is not None and self.bias is not None:
                folded.bias.copy_(self.bias)
        folded.requires_grad_(any(weight.requires_grad for weight in weights))
        return folded.train(self.training)

    def extra_repr(self) -> str:
        parts = [f"{self.channels}, {self.out_channels}, kernel_sizes={self.kernel_sizes}, stride={self.stride}"]
        if any(dilation != 1 for dilation in self.dilations):
            parts.append(f"dilations={self.dilations}")
        parts.append(f"combine={self.combine!r}")
        if self.split:
            parts.append("split=True")
        if self.bias is not None:
            parts.append("bias=True")
        return ", ".join(parts)

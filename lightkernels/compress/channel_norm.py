"""Batch normalisation in training on the CPU: its sums in one pass over the maps, its output and gradient in another.

PyTorch's own takes several of each, and the search needs the sums alone where a neighbour ends in a norm.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightkernels._core import native

Act = Literal["none", "relu", "crelu"]
_ACTS = {"none": 0, "relu": 1, "crelu": 2}
_nothing = torch.empty(0)


class ChannelNorm:
    """The passes for maps ``z`` ``[n, c, h, w]``; ``y`` and ``g`` are what follows an activation and a shuffle.

    With ``t = scale * z + shift`` in each channel, ``y = shuffle(act(t))``. ``"crelu"`` doubles the channels.
    """

    def __init__(self, module: Any, z: Tensor, act: Act, groups: int) -> None:
        n, c, h, w = z.shape
        self.z, self.c, self.count = z, c, n * h * w
        self.shape = (n, 2 * c if act == "crelu" else c, h, w)
        self._native = module.ChannelNorm(n, c, h * w, groups, _ACTS[act], torch.get_num_threads())

    def moments(self, g: Tensor | None = None) -> Tensor:
        """float64 ``[4, c]``: mean and variance of z; the sums of g and of ``g * (z - mean)``, for act "none"."""
        found = torch.empty(4, self.c, dtype=torch.float64)
        g = None if g is None else g.contiguous()
        self._native.moments(self.z.data_ptr(), 0 if g is None else g.data_ptr(), found.data_ptr())
        return found

    def apply(self, scale: Tensor, shift: Tensor) -> Tensor:
        """``y``; scale and shift float32 ``[c]``."""
        y = torch.empty(self.shape)
        self._native.apply(self.z.data_ptr(), scale.data_ptr(), shift.data_ptr(), y.data_ptr())
        return y

    def reduce(self, g: Tensor, scale: Tensor, shift: Tensor, centre: Tensor) -> Tensor:
        """float64 ``[2, c]``: of d, the gradient of t, the sums of d and of ``d * (z - centre)``."""
        found, g = torch.empty(2, self.c, dtype=torch.float64), g.contiguous()
        at = (t.data_ptr() for t in (self.z, g, scale, shift, centre, found))
        self._native.reduce(*at)
        return found

    def backward(self, g: Tensor, scale: Tensor, shift: Tensor, factors: Tensor) -> Tensor:
        """``a * d + b * (z - centre) + k``; factors float32 ``[4, c]``: a, b, centre, k."""
        gz, g = torch.empty_like(self.z), g.contiguous()
        at = (t.data_ptr() for t in (self.z, g, scale, shift, factors, gz))
        self._native.backward(*at)
        return gz


def _is_plain(z: Tensor) -> bool:
    return z.dtype is torch.float32 and z.is_cpu and z.is_contiguous() and z.numel() > 0


def channel_norm(z: Tensor, act: Act = "none", groups: int = 1) -> ChannelNorm | None:
    """The passes, where the native module has them and ``z`` is float32, dense in NCHW and on the CPU."""
    if not _is_plain(z):
        return None
    module = native.load("_C")[0]
    return ChannelNorm(module, z, act, groups) if hasattr(module, "ChannelNorm") else None


# Weights of a 1x1 convolution beyond which a matrix product of its own is faster than making its output twice.
_MIXED = 1024


class MixedNorm:
    """The passes of :class:`ChannelNorm` for ``z = conv(d)``, a 1x1 convolution whose output is not stored."""

    def __init__(self, module: Any, conv: nn.Conv2d, d: Tensor, act: Act, groups: int) -> None:
        n, inputs, h, w = d.shape
        self.d, self.weight, self.c, self.shape = (
            d,
            conv.weight.detach(),
            conv.out_channels,
            (n, conv.out_channels, h, w),
        )
        self._mix = inputs, conv.groups
        self._native = module.ChannelNorm(n, self.c, h * w, groups, _ACTS[act], torch.get_num_threads())

    def moments(self, g: Tensor | None = None) -> Tensor:
        """As those of :class:`ChannelNorm`; g, if given, of y's shape."""
        found = torch.empty(4, self.c, dtype=torch.float64)
        g = None if g is None else g.contiguous()
        at = (self.d.data_ptr(), self.weight.data_ptr(), 0 if g is None else g.data_ptr(), found.data_ptr())
        self._native.mixed_moments(*self._mix, *at)
        return found

    def apply(self, scale: Tensor, shift: Tensor, base: Tensor | None = None) -> Tensor:
        """``base + shuffle(act(scale * z + shift))``, act "none" or "relu"."""
        y = torch.empty(self.shape)
        base = None if base is None else base.contiguous()
        at = (self.d, self.weight, scale, shift)
        to = (0 if base is None else base.data_ptr(), y.data_ptr())
        self._native.mixed_apply(*self._mix, *(t.data_ptr() for t in at), *to)
        return y


def mixed_norm(conv: nn.Conv2d, d: Tensor, act: Act = "none", groups: int = 1) -> MixedNorm | None:
    """The passes, where the native module has them and this 1x1 convolution is small; else None."""
    w = conv.weight
    if w.dtype is not torch.float32 or not w.is_contiguous() or not _is_plain(d):
        return None
    if conv.kernel_size != (1, 1) or conv.stride != (1, 1) or conv.bias is not None:
        return None
    if conv.out_channels // conv.groups % 2 or w.shape[0] // conv.groups * w.shape[1] > _MIXED:
        return None
    module: Any = native.load("_C")[0]
    found = hasattr(module, "ChannelNorm") and hasattr(module.ChannelNorm, "mixed_moments")
    return MixedNorm(module, conv, d, act, groups) if found else None

"""Batch normalisation in training on the CPU: its sums in one pass over the maps, its output and gradient in another.

PyTorch's own takes several of each, and the search needs the sums alone where a neighbour ends in a norm.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

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


def channel_norm(z: Tensor, act: Act = "none", groups: int = 1) -> ChannelNorm | None:
    """The passes, where the native module has them and ``z`` is float32, dense in NCHW and on the CPU."""
    if z.dtype is not torch.float32 or not z.is_cpu or not z.is_contiguous() or z.numel() == 0:
        return None
    module = native.load("_C")[0]
    return ChannelNorm(module, z, act, groups) if hasattr(module, "ChannelNorm") else None

"""Batch normalisation in training on the CPU: its sums in one pass over the maps, its output and gradient in another.

PyTorch's own takes several of each, and the search needs the sums alone where a neighbour ends in a norm. What lies
between the passes, a few numbers a channel, is computed within the same native call.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightkernels._core import native

Act = Literal["none", "relu", "crelu"]
_ACTS = {"none": 0, "relu": 1, "crelu": 2}
_threads = torch.get_num_threads


def _at(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


class ChannelNorm:
    """The passes for maps ``z`` ``[n, c, h, w]``; ``y`` and ``g`` are what follows an activation and a shuffle.

    With ``t = scale * z + shift`` in each channel, ``y = base + shuffle(act(t))``. ``"crelu"`` doubles the channels.
    What a forward keeps for its backward is float32 ``[5, c]``: mean, variance, 1 / deviation, scale, shift.
    """

    def __init__(self, kind: Any, z: Tensor, act: Act, groups: int, planes: int) -> None:
        n, c, h, w = z.shape
        self.z, self.c = z, c
        self.shape = (n, 2 * c if act == "crelu" else c, h, w)
        self._native = kind(n, c, h * w, groups, planes or c, _ACTS[act], _threads())

    def apply(self, scale: Tensor, shift: Tensor, base: Tensor | None = None) -> Tensor:
        """``y``; scale and shift float32 ``[c]``."""
        y, base = torch.empty(self.shape), None if base is None else base.contiguous()
        self._native.apply(self.z.data_ptr(), scale.data_ptr(), shift.data_ptr(), _at(base), y.data_ptr())
        return y

    def forward(self, norm: nn.BatchNorm2d, base: Tensor | None = None, count: bool = False) -> tuple[Tensor, Tensor]:
        """``y`` by the statistics of the batch, and what is kept; with `count` the running ones take their share."""
        y, kept = torch.empty(self.shape), torch.empty(5, self.c)
        base = None if base is None else base.contiguous()
        mean, variance, share = _running(norm) if count else (0, 0, 0.0)
        at = (self.z.data_ptr(), _at(norm.weight), _at(norm.bias), norm.eps, mean, variance, share)
        self._native.forward(*at, kept.data_ptr(), _at(base), y.data_ptr())
        return y, kept

    def backward(
        self, g: Tensor, weight: Tensor | None, bias: Tensor | None, kept: Tensor, wanted: bool = True
    ) -> tuple[Tensor | None, Tensor, float]:
        """z's gradient if wanted; those of weight and bias ``[2, c]``; their sum of products with weight and bias."""
        gz, found, g = torch.empty_like(self.z) if wanted else None, torch.empty(2, self.c), g.contiguous()
        at = (self.z.data_ptr(), g.data_ptr(), _at(weight), _at(bias), kept.data_ptr(), found.data_ptr(), _at(gz))
        own: float = self._native.backward(*at)
        return gz, found, own

    def product(self, norm: nn.BatchNorm2d, g: Tensor, first: int = 0) -> float:
        """The scalar product of ``y``, without base and by the statistics of the batch, and ``g``.

        `first`: the channel of the norm and of ``g`` that z begins with, act "none" and one group.
        """
        g, skip = g.contiguous(), 4 * first
        weight, bias = (0 if t is None else t.data_ptr() + skip for t in (norm.weight, norm.bias))
        at = (self.z.data_ptr(), g.data_ptr() + skip * self.shape[2] * self.shape[3], weight, bias, norm.eps)
        found: float = self._native.product(*at)
        return found


def _running(norm: nn.BatchNorm2d) -> tuple[int, int, float]:
    """Where the running statistics are, one batch more counted, and the share that this batch has in them."""
    if not norm.track_running_stats or norm.running_mean is None or norm.running_var is None:
        return 0, 0, 0.0
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    share = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    return norm.running_mean.data_ptr(), norm.running_var.data_ptr(), share


@cache
def _native_kind(module: Any) -> Any:
    """The native class, or None: of another build, or of none."""
    kind = getattr(module, "ChannelNorm", None)
    return kind if hasattr(kind, "mixed_backward") else None


def _is_plain(z: Tensor) -> bool:
    # A subclass may have no memory to read, such as a fake tensor.
    return type(z) is Tensor and z.dtype is torch.float32 and z.is_cpu and z.is_contiguous() and z.numel() > 0


def in_planes(x: Tensor) -> Tensor:
    """A channels_last map of the CPU as the passes read it, in NCHW; anything else as it is.

    A layer of the search takes about half of the time there: what follows in the network then stays in NCHW.
    """
    if not x.is_cpu or x.dtype is not torch.float32 or x.dim() != 4 or x.is_contiguous():
        return x
    return x if _native_kind(native.load("_C")[0]) is None else x.contiguous()


def channel_norm(
    z: Tensor, act: Act = "none", groups: int = 1, norm: nn.BatchNorm2d | None = None, planes: int = 0
) -> Any:
    """A :class:`ChannelNorm`, where the native module has one, ``z`` is float32, dense in NCHW and on the CPU, and so
    is all that the norm, if named, keeps a channel; else None. `planes`: g's channels, if more than those of z.
    """
    if not _is_plain(z) or (norm is not None and not is_single(norm)):
        return None
    kind = _native_kind(native.load("_C")[0])
    return None if kind is None else ChannelNorm(kind, z, act, groups, planes)


def is_single(norm: nn.BatchNorm2d) -> bool:
    """Whether all that the norm keeps is as the passes read it."""
    for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        if t is not None and not (t.dtype is torch.float32 and t.is_contiguous() and t.is_cpu):
            return False
    return True


def known_product(norm: nn.BatchNorm2d, sums: Tensor) -> float:
    """:meth:`ChannelNorm.product` of act "none" by what :func:`lightkernels.functional.rsdc2d_moments` gives alone."""
    _, variance, total, centred = sums
    scale = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach()
    found = torch.dot(scale, centred)
    if norm.bias is not None:
        found = found + torch.dot(norm.bias.detach().double(), total)
    return found.item()


# Weights of a 1x1 convolution beyond which a matrix product of its own is faster than making its output twice.
_MIXED = 1024


class MixedNorm:
    """:class:`ChannelNorm` for ``z = conv(d)``, a 1x1 convolution whose output is not stored."""

    def __init__(self, kind: Any, weight: Tensor, d: Tensor, of: int, act: Act, groups: int) -> None:
        n, inputs, h, w = d.shape
        c = weight.shape[0]
        self.c, self.shape = c, (n, c, h, w)
        # The tensors are held, as their addresses are.
        self._held = d, weight
        self._from = inputs, of, d.stride(0) // (h * w), d.data_ptr(), weight.data_ptr()
        self._native = kind(n, c, h * w, groups, c, _ACTS[act], _threads())

    def forward(self, norm: nn.BatchNorm2d, base: Tensor | None = None, count: bool = False) -> tuple[Tensor, Tensor]:
        """``base + shuffle(act(t))`` by the statistics of the batch, act "none" or "relu", and what is kept."""
        y, kept, base = torch.empty(self.shape), torch.empty(5, self.c), None if base is None else base.contiguous()
        mean, variance, share = _running(norm) if count else (0, 0, 0.0)
        at = (_at(norm.weight), _at(norm.bias), norm.eps, mean, variance, share, kept.data_ptr(), _at(base))
        self._native.mixed_forward(*self._from, *at, y.data_ptr())
        return y, kept

    def apply(self, kept: Tensor, base: Tensor | None = None) -> Tensor:
        """The same output once more."""
        y, base = torch.empty(self.shape), None if base is None else base.contiguous()
        at = (kept[3].data_ptr(), kept[4].data_ptr(), _at(base), y.data_ptr())
        self._native.mixed_apply(*self._from, *at)
        return y

    def backward(
        self, g: Tensor, weight: Tensor | None, bias: Tensor | None, kept: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, float]:
        """The gradients of d and of the convolution's weight, and as of :meth:`ChannelNorm.backward`."""
        d, w = self._held
        gd, gw, found, g = torch.empty(d.shape), torch.empty(w.shape), torch.empty(2, self.c), g.contiguous()
        at = (g.data_ptr(), _at(weight), _at(bias), kept.data_ptr(), found.data_ptr(), gd.data_ptr(), gw.data_ptr())
        own: float = self._native.mixed_backward(*self._from, *at)
        return gd, gw, found, own

    def product(self, norm: nn.BatchNorm2d, g: Tensor) -> float:
        """Of ``y`` and ``g``, act "none"."""
        g = g.contiguous()
        at = (g.data_ptr(), _at(norm.weight), _at(norm.bias), norm.eps)
        found: float = self._native.mixed_product(*self._from, *at)
        return found


def mixed_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d, d: Tensor, act: Act = "none", groups: int = 1) -> Any:
    """A :class:`MixedNorm`, where the native module has one and this 1x1 convolution is small; else None.

    The maps of an image must be dense, images need not follow each other.
    """
    w = conv.weight
    n, c, height, width = d.shape
    if type(d) is not Tensor or d.dtype is not torch.float32 or not d.is_cpu or not n * c * height * width:
        return None
    if d.stride()[1:] != (height * width, width, 1) or d.stride(0) % (height * width):
        return None
    if w.dtype is not torch.float32 or not w.is_contiguous() or not is_single(norm):
        return None
    if conv.kernel_size != (1, 1) or conv.stride != (1, 1) or conv.bias is not None:
        return None
    if conv.out_channels // conv.groups % 2 or w.shape[0] // conv.groups * w.shape[1] > _MIXED:
        return None
    kind = _native_kind(native.load("_C")[0])
    return None if kind is None else MixedNorm(kind, w, d, conv.groups, act, groups)


def mixed_again(weight: Tensor, d: Tensor, of: int, act: Act, groups: int) -> MixedNorm:
    """What :func:`mixed_norm` gave for these tensors before; `of`: the convolution's groups."""
    return MixedNorm(_native_kind(native.load("_C")[0]), weight, d, of, act, groups)

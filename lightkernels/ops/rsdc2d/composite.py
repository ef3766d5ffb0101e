"""The best that PyTorch's own operators do: a dense convolution that is zero but for its taps, or, on the CPU where
filters share their taps and are many, the shifted inputs copied side by side and one 1x1 convolution over them.

On the CPU, 16-bit tensors are computed in float32 and rounded once, as PyTorch's own 16-bit path is far slower there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
import torch.nn.grad
from torch import Tensor

from lightkernels.ops.rsdc2d import reference
from lightkernels.ops.rsdc2d.reference import as_input, as_output

if TYPE_CHECKING:
    from lightkernels.ops.rsdc2d.op import Spec

# A copied value costs as much as this many multiply-adds; measured for each pass.
_COPY = {"fwd": 48, "bwd_x": 144, "bwd_w": 72}


def why_not(spec: Spec) -> str | None:
    return None


def config_text(spec: Spec) -> str:
    if spec.exact_nonfinite:
        return "shifted inputs gathered, as the reference"
    return ", ".join(f"{name} {'gather' if gathers(spec, name) else 'masked'}" for name in _COPY)


def gathers(spec: Spec, name: str) -> bool:
    """Whether pass ``name`` copies T shifted inputs instead of multiplying by k * k - T zeros."""
    if spec.device != "cpu" or spec.scope == "filter":
        return False
    each, part = spec.c_out // spec.groups, spec.c // spec.groups
    if spec.groups > 1 and each <= 2:
        # Where PyTorch's grouped convolution has no kernel of its own.
        return spec.layout == "nchw" and part >= 4
    copy = _COPY[name] * (1 if spec.groups == 1 else 1.3)
    return spec.taps * (each + copy) < spec.kernel_size**2 * each


def _wide(spec: Spec, t: Tensor) -> Tensor:
    small = spec.dtype in (torch.bfloat16, torch.float16)
    return t.float() if small and spec.device == "cpu" else t


def in_layout(spec: Spec, t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last if spec.layout == "nhwc" else torch.contiguous_format)


def _where(spec: Spec, taps: Tensor) -> Tensor:
    """[Co, C/groups, T]: each weight's cell."""
    each = taps.repeat_interleave(spec.c_out // spec.sets, 0)
    return each[:, None].expand(spec.weight_shape)


def masked_weight(spec: Spec, w: Tensor, taps: Tensor) -> Tensor:
    """[Co, C/groups, k, k], zero but for the taps."""
    k = spec.kernel_size
    cells = w.new_zeros(*spec.weight_shape[:2], k * k).scatter_(2, _where(spec, taps), w)
    return in_layout(spec, cells.view(*spec.weight_shape[:2], k, k))


def _dense(spec: Spec) -> dict[str, Any]:
    return {"stride": spec.stride, "padding": spec.padding, "dilation": spec.dilation, "groups": spec.groups}


def _sets(spec: Spec, taps: Tensor) -> list[list[int]]:
    """The cells of each group; one list for all if there is one group."""
    sets: list[list[int]] = taps.tolist()
    return sets * spec.groups if spec.sets == 1 else sets


def _cell(spec: Spec, wide: Tensor, group: int, cell: int) -> Tensor:
    """The padded image's channels of ``group``, shifted to ``cell``."""
    part = spec.c // spec.groups
    (sh, sw), (dh, dw) = spec.stride, spec.dilation
    y, x = cell // spec.kernel_size * dh, cell % spec.kernel_size * dw
    rows, columns = slice(y, y + (spec.ho - 1) * sh + 1, sh), slice(x, x + (spec.wo - 1) * sw + 1, sw)
    return wide[:, group * part : (group + 1) * part, rows, columns]


def _gathered(spec: Spec, x: Tensor, taps: Tensor) -> Tensor:
    """[N, groups * T * C/groups, ho, wo]"""
    (ph, pw) = spec.padding
    wide = in_layout(spec, F.pad(x, (pw, pw, ph, ph)))
    return torch.cat([_cell(spec, wide, g, q) for g, cells in enumerate(_sets(spec, taps)) for q in cells], 1)


def _by_taps(w: Tensor) -> Tensor:
    """The weight of the 1x1 convolution over what is gathered."""
    return w.transpose(1, 2).reshape(w.shape[0], -1, 1, 1)


def fwd(spec: Spec, x: Tensor, w: Tensor, b: Tensor | None, taps: Tensor) -> Tensor:
    x, w = _wide(spec, x), _wide(spec, w)
    b = None if b is None else _wide(spec, b)
    if spec.exact_nonfinite or spec.empty:
        return reference.fwd(spec, x, w, b, taps)
    if gathers(spec, "fwd"):
        y = F.conv2d(_gathered(spec, x, taps), _by_taps(w), b, groups=spec.groups)
    else:
        y = F.conv2d(x, masked_weight(spec, w, taps), b, **_dense(spec))
    return as_output(spec, y)


def bwd_x(spec: Spec, g: Tensor, w: Tensor, taps: Tensor) -> Tensor:
    g, w = in_layout(spec, _wide(spec, g)), _wide(spec, w)
    if spec.exact_nonfinite or spec.empty:
        return reference.bwd_x(spec, g, w, taps)
    if not gathers(spec, "bwd_x"):
        dx = torch.nn.grad.conv2d_input(spec.x_shape, masked_weight(spec, w, taps), g, **_dense(spec))
        return as_input(spec, dx)
    (ph, pw), part = spec.padding, spec.c // spec.groups
    shape = (spec.n, spec.c * spec.taps, spec.ho, spec.wo)
    gathered = torch.nn.grad.conv2d_input(shape, _by_taps(w), g, groups=spec.groups)
    wide = in_layout(spec, g.new_zeros(spec.n, spec.c, spec.h + 2 * ph, spec.w + 2 * pw))
    pieces = iter(gathered.split(part, 1))
    for group, cells in enumerate(_sets(spec, taps)):
        for q in cells:
            _cell(spec, wide, group, q).add_(next(pieces))
    return as_input(spec, wide[:, :, ph : ph + spec.h, pw : pw + spec.w])


def bwd_w(spec: Spec, g: Tensor, x: Tensor, taps: Tensor) -> Tensor:
    g, x = in_layout(spec, _wide(spec, g)), _wide(spec, x)
    filters, part, count = spec.weight_shape
    if spec.exact_nonfinite or spec.empty:
        return reference.bwd_w(spec, g, x, taps).to(spec.dtype)
    if gathers(spec, "bwd_w"):
        shape: tuple[int, ...] = (filters, part * count, 1, 1)
        dw: Tensor = torch.nn.grad.conv2d_weight(_gathered(spec, x, taps), shape, g, groups=spec.groups)
        return dw.view(filters, count, part).transpose(1, 2).to(spec.dtype).contiguous()
    shape = (filters, part, spec.kernel_size, spec.kernel_size)
    dw = torch.nn.grad.conv2d_weight(x, shape, g, **_dense(spec))
    return dw.flatten(2).gather(2, _where(spec, taps)).to(spec.dtype)

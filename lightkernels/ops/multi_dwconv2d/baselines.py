"""What to measure multi_dwconv2d against, and the truth to check every candidate with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightkernels._core.measure import Entry, compiled, has_compiler
from lightkernels._core.spec import Layout
from lightkernels.ops.multi_dwconv2d.op import multi_dwconv2d

LAYOUTS: tuple[Layout, Layout] = ("nchw", "nhwc")
Forward = Callable[[Tensor, Sequence[Tensor]], Tensor]
WIDE = {torch.bfloat16: torch.float32, torch.float16: torch.float32}


def ours(
    combine: str = "concat", backend: str | None = None, stride: int = 1, name: str = "lightkernels"
) -> list[Entry]:
    """This package's own function, in both layouts."""

    def forward(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        return multi_dwconv2d(x, weights, combine=combine, backend=backend, stride=stride)

    return [Entry(name, layout, forward, ours=True) for layout in LAYOUTS]


def entries(
    kernel_sizes: Sequence[int],
    combine: str = "concat",
    dtype: torch.dtype = torch.float32,
    compile: Sequence[Layout] = (),
    sixteen: Literal["upcast", "native", "both"] = "upcast",
    stride: int = 1,
) -> list[Entry]:
    """The list, for dilation 1.

    One convolution a branch, then cat or sum; for ``add`` one convolution with the merged kernel; for ``concat`` of
    several branches one convolution with a depth multiplier, whose output channels stay interleaved, and one over
    repeated channels, the kernels of both padded with zeros; on 16 bit the same in float32 with one rounding at the
    end, in the native type, or ``"both"``; through torch.compile in the layouts of ``compile``. Kernels are merged or
    padded once, outside the timing.
    """
    forms: list[tuple[str, Forward, dict[str, Any]]] = []
    for wide in _widths(dtype, sixteen):
        tag = "" if wide is None else " upcast"
        forms.append((f"eager{tag}", _branches(combine, wide, stride), {}))
        if len(kernel_sizes) > 1 and combine == "add":
            forms.append((f"merged{tag}", _single(wide, stride), _merged(kernel_sizes)))
        if len(kernel_sizes) > 1 and combine == "concat":
            forms.append((f"multiplier{tag}", _single(wide, stride), _multiplier(kernel_sizes)))
            forms.append((f"repeated{tag}", _repeated(wide, stride), _stacked(kernel_sizes)))
    found = [Entry(name, layout, forward, **more) for name, forward, more in forms for layout in LAYOUTS]
    if compile and has_compiler():
        whole = [e for e in found if not e.name.startswith(("multiplier", "repeated")) and e.layout in compile]
        found += [compiled(e) for e in whole]
    return found


def _widths(dtype: torch.dtype, sixteen: str) -> list[torch.dtype | None]:
    wide = WIDE.get(dtype)
    if wide is None or sixteen == "native":
        return [None]
    return [wide, None] if sixteen == "both" else [wide]


def _branches(combine: str, wide: torch.dtype | None, stride: int) -> Forward:
    def forward(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        dtype = x.dtype
        x = x if wide is None else x.to(wide)
        parts = []
        for w in weights:
            w = w if wide is None else w.to(wide)
            parts.append(F.conv2d(x, w, None, stride, w.shape[-1] // 2, groups=x.shape[1]))
        if len(parts) == 1:
            y = parts[0]
        elif combine == "concat":
            y = torch.cat(parts, 1)
        else:
            y = parts[0]
            for part in parts[1:]:
                y = y + part
        return y.to(dtype)

    return forward


def _single(wide: torch.dtype | None, stride: int) -> Forward:
    def forward(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        (w,) = weights
        if wide is not None:
            return F.conv2d(x.to(wide), w.to(wide), None, stride, w.shape[-1] // 2, groups=x.shape[1]).to(x.dtype)
        return F.conv2d(x, w, None, stride, w.shape[-1] // 2, groups=x.shape[1])

    return forward


def _repeated(wide: torch.dtype | None, stride: int) -> Forward:
    single = _single(wide, stride)

    def forward(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        return single(x.repeat(1, weights[0].shape[0] // x.shape[1], 1, 1), weights)

    return forward


def _spread(w: Tensor, hull: int) -> Tensor:
    pad = (hull - w.shape[-1]) // 2
    return F.pad(w, (pad, pad, pad, pad))


def _crop(w: Tensor, k: int) -> Tensor:
    start = (w.shape[-1] - k) // 2
    return w[..., start : start + k, start : start + k]


def _merged(kernel_sizes: Sequence[int]) -> dict[str, Any]:
    hull = max(kernel_sizes)

    def weights(ws: Sequence[Tensor]) -> list[Tensor]:
        return [torch.stack([_spread(w, hull) for w in ws]).sum(0)]

    def weight_grads(grads: Sequence[Tensor]) -> list[Tensor]:
        return [_crop(grads[0], k) for k in kernel_sizes]

    return {"weights": weights, "weight_grads": weight_grads}


def _stacked(kernel_sizes: Sequence[int]) -> dict[str, Any]:
    hull, count = max(kernel_sizes), len(kernel_sizes)

    def weights(ws: Sequence[Tensor]) -> list[Tensor]:
        return [torch.cat([_spread(w, hull) for w in ws])]

    def weight_grads(grads: Sequence[Tensor]) -> list[Tensor]:
        return [_crop(part, k) for part, k in zip(grads[0].chunk(count), kernel_sizes, strict=True)]

    return {"weights": weights, "weight_grads": weight_grads}


def _multiplier(kernel_sizes: Sequence[int]) -> dict[str, Any]:
    hull, count = max(kernel_sizes), len(kernel_sizes)

    def weights(ws: Sequence[Tensor]) -> list[Tensor]:
        return [torch.stack([_spread(w, hull) for w in ws], 1).flatten(0, 1)]

    def weight_grads(grads: Sequence[Tensor]) -> list[Tensor]:
        parts = grads[0].unflatten(0, (-1, count)).unbind(1)
        return [_crop(p, k) for p, k in zip(parts, kernel_sizes, strict=True)]

    def gradient(g: Tensor) -> Tensor:
        return torch.stack(g.chunk(count, 1), 2).flatten(1, 2)

    def output(y: Tensor) -> Tensor:
        return torch.cat([y[:, m::count] for m in range(count)], 1)

    return {"weights": weights, "weight_grads": weight_grads, "gradient": gradient, "output": output}


def truth(
    x: Tensor,
    weights: Sequence[Tensor],
    g: Tensor,
    combine: str = "concat",
    kind: str = "step",
    stride: int = 1,
) -> list[Tensor]:
    """The results of pass ``kind`` in float64, tap by tap, for dilation 1: no convolution of PyTorch's is involved."""
    c, h, w = x.shape[1:]
    reach = max(v.shape[-1] for v in weights) // 2
    wide = F.pad(x.double(), (reach,) * 4).contiguous()
    g = g.double().contiguous()
    parts = [g] * len(weights) if combine == "add" else list(g.split(c, 1))
    dx = torch.zeros_like(wide)
    outputs, weight_grads = [], []
    for weight, part in zip(weights, parts, strict=True):
        kernel = weight.double().squeeze(1)
        k = kernel.shape[-1]
        y, dw = torch.zeros_like(part), torch.empty_like(kernel)
        for u in range(k):
            for v in range(k):
                i, j = reach - k // 2 + u, reach - k // 2 + v
                at = (..., slice(i, i + h, stride), slice(j, j + w, stride))
                tap = kernel[:, u, v].view(1, c, 1, 1)
                if kind == "forward":
                    y.addcmul_(wide[at], tap)
                if kind in ("grad_x", "step"):
                    dx[at].addcmul_(part, tap)
                if kind in ("grad_w", "step"):
                    dw[:, u, v] = torch.einsum("nchw,nchw->c", wide[at], part)
        outputs.append(y)
        weight_grads.append(dw.unsqueeze(1))
    if kind == "forward":
        return [torch.stack(outputs).sum(0) if combine == "add" else torch.cat(outputs, 1)]
    gx = dx[:, :, reach : reach + h, reach : reach + w]
    return {"grad_x": [gx], "grad_w": weight_grads, "step": [gx, *weight_grads]}[kind]

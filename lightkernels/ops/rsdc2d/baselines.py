"""What to measure rsdc2d against, and the truth to check every candidate with; for dilation 1 and "same" padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightkernels._core.measure import Entry, compiled, has_compiler
from lightkernels._core.spec import Layout
from lightkernels.ops.rsdc2d.op import rsdc2d

LAYOUTS: tuple[Layout, Layout] = ("nchw", "nhwc")
Forward = Callable[[Tensor, Sequence[Tensor]], Tensor]
WIDE = {torch.bfloat16: torch.float32, torch.float16: torch.float32}


def ours(
    taps: Tensor,
    kernel_size: int,
    stride: int = 1,
    groups: int = 1,
    backend: str | None = None,
    name: str = "lightkernels",
) -> list[Entry]:
    """This package's own function, in both layouts."""

    def forward(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        return rsdc2d(x, weights[0], taps, kernel_size=kernel_size, stride=stride, groups=groups, backend=backend)

    return [Entry(name, layout, forward, ours=True) for layout in LAYOUTS]


def entries(
    taps: Tensor,
    kernel_size: int,
    stride: int = 1,
    groups: int = 1,
    dtype: torch.dtype = torch.float32,
    compile: Sequence[Layout] = (),
    sixteen: Literal["upcast", "native", "both"] = "upcast",
) -> list[Entry]:
    """The list.

    ``masked``: a dense convolution whose weight is zero but for its taps, made once, outside the timing, and whose
    gradient is cropped there too; where no filter has its own set, ``shifts``: a 1x1 convolution a tap, added up,
    ``gather``: all shifted inputs copied side by side and one 1x1 convolution, and in one group ``unfold``: im2col,
    selection and a matrix product. On 16 bit the same in float32 with one rounding at the end, in the native type, or
    ``"both"``; through torch.compile in the layouts of ``compile``.
    """
    sets = taps.tolist() * (groups if len(taps) == 1 else 1)
    shared = len(sets) == groups
    forms: list[tuple[str, Forward, dict[str, Any]]] = []
    for wide in _widths(dtype, sixteen):
        tag = "" if wide is None else " upcast"
        forms.append((f"masked{tag}", _upcast(_masked(stride, groups), wide), _dense(taps, kernel_size)))
        if shared:
            forms.append((f"shifts{tag}", _upcast(_shifts(sets, kernel_size, stride, groups), wide), _cut(taps)))
            forms.append((f"gather{tag}", _upcast(_gather(sets, kernel_size, stride, groups), wide), _joined(taps)))
        if shared and groups == 1:
            forms.append((f"unfold{tag}", _upcast(_unfold(sets[0], kernel_size, stride), wide), {}))
    found = [Entry(name, layout, forward, **more) for name, forward, more in forms for layout in LAYOUTS]
    if compile and has_compiler():
        found += [compiled(e) for e in found if e.layout in compile and not e.name.startswith("unfold")]
    return found


def three_by_three(groups: int = 1, stride: int = 1) -> list[Entry]:
    """A 3x3 convolution of the same channels: another function of the same price, to be timed and not compared."""

    def forward(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        return F.conv2d(x, weights[0], None, stride, 1, 1, groups)

    def square(ws: Sequence[Tensor]) -> list[Tensor]:
        return [ws[0][:, :, :9].unflatten(2, (3, 3)).contiguous()]

    return [Entry("3x3", layout, forward, square) for layout in LAYOUTS]


def _widths(dtype: torch.dtype, sixteen: str) -> list[torch.dtype | None]:
    wide = WIDE.get(dtype)
    if wide is None or sixteen == "native":
        return [None]
    return [wide, None] if sixteen == "both" else [wide]


def _upcast(forward: Forward, wide: torch.dtype | None) -> Forward:
    if wide is None:
        return forward
    return lambda x, ws: forward(x.to(wide), [w.to(wide) for w in ws]).to(x.dtype)


def _masked(stride: int, groups: int) -> Forward:
    return lambda x, ws: F.conv2d(x, ws[0], None, stride, ws[0].shape[-1] // 2, 1, groups)


def _where(taps: Tensor, weight: Tensor) -> Tensor:
    """Each weight's cell, for weights [Co, C / groups, ...]."""
    each = taps.repeat_interleave(weight.shape[0] // len(taps), 0)[:, None]
    return each.expand(*weight.shape[:2], taps.shape[1])


def _dense(taps: Tensor, k: int) -> dict[str, Any]:
    def weights(ws: Sequence[Tensor]) -> list[Tensor]:
        w = ws[0]
        return [w.new_zeros(*w.shape[:2], k * k).scatter_(2, _where(taps, w), w).unflatten(2, (k, k))]

    def weight_grads(grads: Sequence[Tensor]) -> list[Tensor]:
        return [grads[0].flatten(2).gather(2, _where(taps, grads[0]))]

    return {"weights": weights, "weight_grads": weight_grads}


def _shifted(x: Tensor, k: int, stride: int) -> Callable[[int], Tensor]:
    r, h, w = k // 2, x.shape[2], x.shape[3]
    wide = F.pad(x, (r, r, r, r))
    return lambda q: wide[:, :, q // k : q // k + h : stride, q % k : q % k + w : stride]


def _shifts(sets: list[list[int]], k: int, stride: int, groups: int) -> Forward:
    def forward(x: Tensor, ws: Sequence[Tensor]) -> Tensor:
        cell, part = _shifted(x, k, stride), x.shape[1] // groups
        y = None
        for t, w in enumerate(ws):
            if all(own == sets[0] for own in sets):
                tap = cell(sets[0][t])
            else:
                tap = torch.cat([cell(own[t])[:, i * part : (i + 1) * part] for i, own in enumerate(sets)], 1)
            z = F.conv2d(tap, w, groups=groups)
            y = z if y is None else y + z
        assert y is not None
        return y

    return forward


def _cut(taps: Tensor) -> dict[str, Any]:
    def weights(ws: Sequence[Tensor]) -> list[Tensor]:
        return [ws[0][:, :, t, None, None].contiguous() for t in range(taps.shape[1])]

    def weight_grads(grads: Sequence[Tensor]) -> list[Tensor]:
        return [torch.stack([g[:, :, 0, 0] for g in grads], 2)]

    return {"weights": weights, "weight_grads": weight_grads}


def _gather(sets: list[list[int]], k: int, stride: int, groups: int) -> Forward:
    def forward(x: Tensor, ws: Sequence[Tensor]) -> Tensor:
        cell, part = _shifted(x, k, stride), x.shape[1] // groups
        taps = [cell(q)[:, i * part : (i + 1) * part] for i, own in enumerate(sets) for q in own]
        return F.conv2d(torch.cat(taps, 1), ws[0], groups=groups)

    return forward


def _joined(taps: Tensor) -> dict[str, Any]:
    count = taps.shape[1]

    def weights(ws: Sequence[Tensor]) -> list[Tensor]:
        return [ws[0].transpose(1, 2).flatten(1)[:, :, None, None].contiguous()]

    def weight_grads(grads: Sequence[Tensor]) -> list[Tensor]:
        return [grads[0].flatten(1).unflatten(1, (count, -1)).transpose(1, 2)]

    return {"weights": weights, "weight_grads": weight_grads}


def _unfold(cells: list[int], k: int, stride: int) -> Forward:
    def forward(x: Tensor, ws: Sequence[Tensor]) -> Tensor:
        n, c, h, w = x.shape
        columns = F.unfold(x, k, padding=k // 2, stride=stride).view(n, c, k * k, -1)[:, :, cells].flatten(1, 2)
        return torch.matmul(ws[0].flatten(1), columns).view(n, -1, (h - 1) // stride + 1, (w - 1) // stride + 1)

    return forward


def truth(
    x: Tensor,
    weights: Sequence[Tensor],
    g: Tensor,
    taps: Tensor,
    kernel_size: int,
    kind: str = "step",
    stride: int = 1,
    groups: int = 1,
) -> list[Tensor]:
    """The results of pass ``kind`` in float64, filter by filter and tap by tap: no convolution of PyTorch's."""
    k, (_, c, h, w), weight = kernel_size, x.shape, weights[0].double()
    r, filters, part = k // 2, weight.shape[0], c // groups
    wide = F.pad(x.double(), (r, r, r, r)).contiguous()
    g = g.double().contiguous()
    y, dx, dw = torch.zeros_like(g), torch.zeros_like(wide), torch.empty_like(weight)
    for s, own in enumerate(taps.tolist()):
        for group in range(groups):
            # The filters of this set and group, which are consecutive.
            each, every = filters // groups, filters // len(taps)
            first, last = max(group * each, s * every), min((group + 1) * each, (s + 1) * every)
            if first >= last:
                continue
            some, inputs = slice(first, last), slice(group * part, (group + 1) * part)
            for t, q in enumerate(own):
                at = (slice(None), inputs, slice(q // k, q // k + h, stride), slice(q % k, q % k + w, stride))
                if kind == "forward":
                    y[:, some] += torch.einsum("nchw,oc->nohw", wide[at], weight[some, :, t])
                if kind in ("grad_x", "step"):
                    dx[at] += torch.einsum("nohw,oc->nchw", g[:, some], weight[some, :, t])
                if kind in ("grad_w", "step"):
                    dw[some, :, t] = torch.einsum("nchw,nohw->oc", wide[at], g[:, some])
    gx = dx[:, :, r : r + h, r : r + w]
    return {"forward": [y], "grad_x": [gx], "grad_w": [dw], "step": [gx, dw]}[kind]

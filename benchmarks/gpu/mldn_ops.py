"""mldn_block and condensed_conv2d on a GPU: the calls of a group, ours and the others, and the truth.

The others of mldn_block: ``eager`` as published (split, paths, exchange, cat), ``grouped`` all paths of a layer in one
call, and in evaluation ``buffer``, which writes into one tensor of the final size. Those of condensed_conv2d: ``eager``
module by module, ``folded`` with the norm as one multiply and add.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu.device import Device
from gpu.mldn import BOTTLENECK, PATHS, PICKING, BlockGroup, CondensedGroup
from gpu.plan import DTYPES, OURS, Group
from lightkernels import condensed_conv2d, mldn_block
from lightkernels._core import measure
from lightkernels._core.measure import Entry, compiled, has_compiler

LAYOUTS = ("nchw", "nhwc")
Forward = Callable[[Tensor, Sequence[Tensor]], Tensor]
EPS = 1e-5


class _SmallBlock(BlockGroup):
    """The same call with sizes for a rehearsal."""

    @property
    def sizes(self) -> tuple[int, ...]:
        return (2, 8, 5, 6, 1)

    @property
    def layers(self) -> int:
        return 2

    @property
    def growth(self) -> int:
        return 8


class _SmallCondensed(CondensedGroup):
    @property
    def sizes(self) -> tuple[int, ...]:
        return (2, 12, 5, 6, 1)

    @property
    def filters(self) -> int:
        return 8


def small(group: Any, device: Device) -> Any:
    form = _SmallBlock if isinstance(group, BlockGroup) else _SmallCondensed
    return form(group.shape, group.dtype, group.variant, group.kind) if device.dry else group


class Shapes:
    """Of a block: sizes of its packed tensors, layer by layer."""

    def __init__(self, group: BlockGroup) -> None:
        self.kappa = group.growth // PATHS
        self.mid, self.groups, self.layers = BOTTLENECK * self.kappa, group.groups, group.layers
        self.widths = group.widths
        self.ones = [PATHS * self.mid * c for c in self.widths]
        self.columns = [PATHS * c for c in self.widths]
        self.mids = [PATHS * self.mid] * self.layers
        self.threes = [PATHS * self.kappa * (self.mid // self.groups) * 9] * self.layers

    def split(self, ws: Sequence[Tensor]) -> list[Tensor]:
        """Each layer's weights and norms, over all paths: the 1x1, the 3x3, gamma and beta of both norms."""
        found = []
        parts = zip(
            ws[0].split(self.ones),
            ws[1].split(self.threes),
            ws[2].split(self.columns, 1),
            ws[3].split(self.mids, 1),
            strict=True,
        )
        for one, three, first, second in parts:
            found.append(one.view(PATHS * self.mid, -1, 1, 1))
            found.append(three.view(PATHS * self.kappa, self.mid // self.groups, 3, 3))
            found += [*first, *second]
        return found

    def joined(self, grads: Sequence[Tensor]) -> list[Tensor]:
        """The inverse, of gradients."""
        rows = [grads[i : i + 6] for i in range(0, len(grads), 6)]
        norms = [torch.stack([torch.cat([row[i] for row in rows]) for i in (a, a + 1)]) for a in (2, 4)]
        weights = [torch.cat([row[i].reshape(-1) for row in rows]) for i in (0, 1)]
        return [*weights, *norms]


def tensors(group: Group, device: Device) -> tuple[Tensor, list[Tensor], Tensor]:
    group = small(group, device)
    n, c, h, w, _ = group.sizes
    where = {"device": device.kind, "dtype": torch.float32}
    dtype = DTYPES[group.dtype]
    wide = torch.float64 if group.dtype == "fp64" else torch.float32

    def norm(count: int) -> Tensor:
        return torch.stack([1 + 0.2 * torch.randn(count, **where), 0.2 * torch.randn(count, **where)]).to(wide)

    x = torch.randn(n, c, h, w, **where).to(dtype)
    if isinstance(group, BlockGroup):
        s = Shapes(group)
        ones = torch.randn(sum(s.ones), **where) / (c // PATHS) ** 0.5
        threes = torch.randn(sum(s.threes), **where) / (9 * s.mid // s.groups) ** 0.5
        weights = [ones.to(dtype), threes.to(dtype), norm(sum(s.columns)), norm(sum(s.mids))]
        return x, weights, torch.randn(n, c + group.layers * group.growth, h, w, **where).to(dtype)
    picked = c // PICKING
    scale, shift = norm(PICKING * picked)
    weights = [torch.randn(group.filters, picked, **where).to(dtype) / picked**0.5, scale.clone(), shift.clone()]
    return x, weights, torch.randn(n, group.filters, h, w, **where).to(dtype)


def _running(s: Shapes, device: Device) -> list[Tensor]:
    """Statistics of both norms, the same in every call of a process."""
    random = torch.Generator().manual_seed(0)
    counts = (sum(s.columns), sum(s.mids))
    found = [torch.stack([torch.randn(n, generator=random), torch.rand(n, generator=random) + 0.5]) for n in counts]
    return [t.to(device.kind) for t in found]


def index_of(group: CondensedGroup, device: Device) -> Tensor:
    """The same in every call of a process."""
    c, random = group.sizes[1], torch.Generator().manual_seed(1)
    rows = [torch.randperm(c, generator=random)[: c // PICKING].sort().values for _ in range(PICKING)]
    return torch.stack(rows).to(device.kind)


def ours(group: Group, device: Device) -> list[measure.Entry]:
    group = small(group, device)
    # The native kernels of a block evaluate.
    trains = isinstance(group, BlockGroup) and group.training
    names = {"triton": OURS["triton"]} if trains else OURS
    return [
        Entry(name, form, _called(group, device, "reference" if device.dry else backend), ours=True)
        for backend, name in names.items()
        for form in LAYOUTS
    ]


def _called(group: Group, device: Device, backend: str) -> Forward:
    if isinstance(group, CondensedGroup):
        index = index_of(group, device)
        return lambda x, ws: condensed_conv2d(x, ws[0], index, ws[1], ws[2], backend=backend)
    assert isinstance(group, BlockGroup)
    values = {"num_layers": group.layers, "paths": PATHS, "growth": group.growth, "bottleneck": BOTTLENECK}
    values |= {"groups": group.groups, "eps": EPS, "backend": backend}
    means = {}
    if not group.training:
        means = dict(zip(("running1", "running2"), _running(Shapes(group), device), strict=True))
    return lambda x, ws: mldn_block(x, *ws, **values, **{k: t.to(ws[2].dtype) for k, t in means.items()})


def others(group: Group, device: Device, compile: bool = False) -> list[measure.Entry]:
    group = small(group, device)
    forms: dict[str, Forward]
    more: dict[str, Any] = {}
    if isinstance(group, CondensedGroup):
        index = index_of(group, device)
        forms = {"eager": _modules(index), "folded": _folded(index)}
    else:
        s = Shapes(group)
        running = None if group.training else _running(s, device)
        forms = {"eager": _published(s, running), "grouped": _grouped(s, running)}
        if running is not None:
            forms["buffer"] = _buffered(s, running)
        more = {"weights": s.split, "weight_grads": s.joined}
    found = [Entry(name, form, forward, **more) for name, forward in forms.items() for form in LAYOUTS]
    if compile and has_compiler():
        found += [compiled(e) for e in found if e.name in ("grouped", "folded")]
    return found


def truth(group: Group, device: Device, x: Tensor, weights: list[Tensor], g: Tensor) -> list[Tensor]:
    """By the definition, in float64."""
    group = small(group, device)
    grad = group.kind != "forward"
    leaves = [t.detach().double().requires_grad_(grad) for t in (x, *weights)]
    y = _called(group, device, "reference")(leaves[0], leaves[1:])
    if not grad:
        return [y]
    wanted = {"step": leaves, "grad_x": leaves[:1], "grad_w": leaves[1:]}[group.kind]
    return list(torch.autograd.grad(y, wanted, g.double()))


# Blocks.


def _norm(x: Tensor, gamma: Tensor, beta: Tensor, stats: Tensor | None) -> Tensor:
    if stats is None:
        return F.relu(F.batch_norm(x, None, None, gamma, beta, True, 0.0, EPS))
    return F.relu(F.batch_norm(x, *stats.to(gamma.dtype), gamma, beta, False, 0.0, EPS))


def _stats(s: Shapes, running: list[Tensor] | None) -> list[tuple[Tensor | None, Tensor | None]]:
    if running is None:
        return [(None, None)] * s.layers
    return list(zip(running[0].split(s.columns, 1), running[1].split(s.mids, 1), strict=True))


def _published(s: Shapes, running: list[Tensor] | None) -> Forward:
    """Algorithm 1: every path by itself."""
    stats = _stats(s, running)

    def part(t: Tensor | None, p: int) -> Tensor | None:
        return None if t is None else t.chunk(PATHS, -1)[p]

    def forward(x: Tensor, ws: Sequence[Tensor]) -> Tensor:
        for layer in range(s.layers):
            one, three, *norms = ws[6 * layer : 6 * layer + 6]
            pieces, made = x.chunk(PATHS, 1), []
            for p, piece in enumerate(pieces):
                g1, b1, g2, b2 = (t.chunk(PATHS)[p] for t in norms)
                z = F.conv2d(_norm(piece, g1, b1, part(stats[layer][0], p)), one.chunk(PATHS)[p])
                z = _norm(z, g2, b2, part(stats[layer][1], p))
                made.append(F.conv2d(z, three.chunk(PATHS)[p], padding=1, groups=s.groups))
            x = torch.cat([t for p, piece in enumerate(pieces) for t in (piece, made[p ^ 1])], 1)
        return x

    return forward


def _layer(s: Shapes, x: Tensor, ws: Sequence[Tensor], layer: int, stats: Any) -> Tensor:
    """New channels of all paths, [N, P, kappa, H, W], the partner's in each path's place."""
    one, three, g1, b1, g2, b2 = ws[6 * layer : 6 * layer + 6]
    z = F.conv2d(_norm(x, g1, b1, stats[layer][0]), one, groups=PATHS)
    z = F.conv2d(_norm(z, g2, b2, stats[layer][1]), three, padding=1, groups=PATHS * s.groups)
    return z.unflatten(1, (PATHS, -1)).flip(1)


def _grouped(s: Shapes, running: list[Tensor] | None) -> Forward:
    stats = _stats(s, running)

    def forward(x: Tensor, ws: Sequence[Tensor]) -> Tensor:
        for layer in range(s.layers):
            made = _layer(s, x, ws, layer, stats)
            x = torch.cat([x.unflatten(1, (PATHS, -1)), made], 2).flatten(1, 2)
        return x

    return forward


def _buffered(s: Shapes, running: list[Tensor]) -> Forward:
    stats = _stats(s, running)

    def forward(x: Tensor, ws: Sequence[Tensor]) -> Tensor:
        last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        form = torch.channels_last if last else torch.contiguous_format
        n, _, h, w = x.shape
        y = torch.empty((n, PATHS * (s.widths[-1] + s.kappa), h, w), dtype=x.dtype, device=x.device, memory_format=form)
        parts = y.unflatten(1, (PATHS, -1))
        parts[:, :, : s.widths[0]] = x.unflatten(1, (PATHS, -1))
        for layer, c in enumerate(s.widths):
            parts[:, :, c : c + s.kappa] = _layer(s, parts[:, :, :c].flatten(1, 2), ws, layer, stats)
        return y

    return forward


# Condensed convolutions.


def _shuffled(a: Tensor, weight: Tensor) -> Tensor:
    grouped = weight.unflatten(0, (-1, PICKING)).transpose(0, 1).flatten(0, 1)[:, :, None, None]
    return F.channel_shuffle(F.conv2d(a, grouped, groups=PICKING), PICKING)


def _modules(index: Tensor) -> Forward:
    flat = index.flatten()
    zeros, ones = torch.zeros(len(flat), device=flat.device), torch.ones(len(flat), device=flat.device)

    def forward(x: Tensor, ws: Sequence[Tensor]) -> Tensor:
        mean, var = zeros.to(ws[1].dtype), ones.to(ws[1].dtype)
        a = F.batch_norm(x.index_select(1, flat), mean, var, ws[1], ws[2], False, 0.0, 0.0)
        return _shuffled(F.relu(a), ws[0])

    return forward


def _folded(index: Tensor) -> Forward:
    flat = index.flatten()

    def forward(x: Tensor, ws: Sequence[Tensor]) -> Tensor:
        scale, shift = (t.to(x.dtype)[:, None, None] for t in ws[1:])
        return _shuffled(F.relu(torch.addcmul(shift, x.index_select(1, flat), scale)), ws[0])

    return forward

"""The definition: Algorithms 1 and 2 of the paper, layer by layer and path by path, with split and cat.

Every call is one of tensors, the norms and the dropout included, so the definition can be traced, batched and
differentiated like any other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightkernels._core.fused import recording
from lightkernels._core.spec import TensorMeta
from lightkernels.ops.mldn_block.spec import DIFFERENTIABLE, Inputs, Outputs, Spec
from lightkernels.ops.rsdc2d import reference as rsdc2d

_WORD = 0xFFFFFFFF


class Path(NamedTuple):
    """What belongs to one path's layer. Norms: gamma, beta, running mean, running variance (None: of the batch)."""

    layer: int
    path: int
    weight1: Tensor
    weight3: Tensor
    bias3: Tensor | None
    weight_sfr: Tensor | None
    norm1: tuple[Tensor | None, ...]
    norm2: tuple[Tensor | None, ...]
    norm3: tuple[Tensor | None, ...]
    taps: Tensor | None
    chosen: Tensor | None
    reached: Tensor | None


def paths_of(spec: Spec, t: Inputs) -> list[list[Path]]:
    """The packed tensors, taken apart: [layer][path]."""
    many, mid, kappa = spec.layers * spec.paths, spec.mid, spec.kappa
    widths = [w for w in spec.widths[:-1] for _ in range(spec.paths)]
    reads = [spec.inputs_of(i) for i in range(spec.layers) for _ in range(spec.paths)]
    none: list[Any] = [None] * many

    def norms(affine: Tensor | None, running: Tensor | None, sizes: list[int]) -> list[Any]:
        rows = [r.split(sizes, 1) if r is not None else none for r in (affine, running)]
        return [
            (*(a if a is not None else (None, None)), *(r if r is not None else (None, None)))
            for a, r in zip(*rows, strict=True)
        ]

    inner = [w // spec.condense_factor for w in widths]
    parts: list[Any] = [
        [w.view(mid, c) for w, c in zip(t.weight1.split([mid * c for c in inner]), inner, strict=True)],
        t.weight3.view(many, kappa, mid // spec.groups, spec.taps).unbind(),
        none if t.bias3 is None else t.bias3.view(many, kappa).unbind(),
        none if t.weight_sfr is None else t.weight_sfr.split([kappa * c for c in inner]),
        norms(t.affine1, t.running1, reads),
        norms(t.affine2, t.running2, [mid] * many),
        norms(t.affine3, t.running3, [kappa] * many),
        none if t.taps is None else t.taps.view(many, spec.sets, spec.taps).unbind(),
        none if t.index is None else t.index.split(reads),
        none if t.index_sfr is None else t.index_sfr.split(reads),
    ]
    flat = [Path(i // spec.paths, i % spec.paths, *rest) for i, rest in enumerate(zip(*parts, strict=True))]
    return [flat[i : i + spec.paths] for i in range(0, many, spec.paths)]


def normalise(spec: Spec, x: Tensor, norm: tuple[Tensor | None, ...], stats: list[Tensor]) -> Tensor:
    """BatchNorm by its formula; batch statistics are noted."""
    gamma, beta, mean, var = norm
    wide = x.to(spec.acc_dtype)
    if mean is None or var is None:
        mean = wide.mean((0, 2, 3))
        var = (wide - mean[:, None, None]).square().mean((0, 2, 3))
        stats.append(torch.stack([mean, var]))
    assert gamma is not None and beta is not None
    scale = gamma * (var + spec.eps).rsqrt()
    return ((wide - mean[:, None, None]) * scale[:, None, None] + beta[:, None, None]).to(spec.dtype)


def _mix(v: Tensor) -> Tensor:
    v = v ^ (v >> 16)
    v = (v * 0x7FEB352D) & _WORD
    v = v ^ (v >> 15)
    v = (v * 0x846CA68B) & _WORD
    return v ^ (v >> 16)


def kept(spec: Spec, seed: Tensor, first: int, channels: int) -> Tensor:
    """Which values dropout keeps, bool [N, channels, H, W], of the channels from column ``first`` of the norms on."""
    rows = torch.arange(first, first + channels, device=seed.device)
    key = _mix(_mix(rows ^ (seed & _WORD)) ^ ((seed >> 32) & _WORD))
    pixels = torch.arange(spec.n * spec.h * spec.w, device=seed.device).view(spec.n, 1, spec.h, spec.w)
    keeps: Tensor = _mix(pixels ^ key[:, None, None]) >= spec.threshold
    return keeps


def drop(spec: Spec, x: Tensor, seed: Tensor | None, first: int) -> Tensor:
    if spec.dropout == 0:
        return x
    assert seed is not None
    kept_values: Tensor = x * kept(spec, seed, first, x.shape[1])
    return kept_values * (1 / (1 - spec.dropout))


def pointwise(spec: Spec, a: Tensor, part: Path) -> Tensor:
    """The 1x1. Condensed: output o reads the channels of group o mod G1."""
    if part.chosen is None:
        return F.conv2d(a, part.weight1[:, :, None, None])
    groups = spec.index_groups
    weight = part.weight1.unflatten(0, (-1, groups)).transpose(0, 1).flatten(0, 1)
    y = F.conv2d(a, weight[:, :, None, None], groups=groups)
    shuffled: Tensor = y.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)
    return shuffled


def reactivating(spec: Spec, part: Path) -> Tensor:
    """[c_l, kappa]: what new channels are multiplied by. Condensed: zero where their group does not reach."""
    assert part.weight_sfr is not None
    if part.reached is None:
        return part.weight_sfr.view(-1, spec.kappa)
    groups, width = spec.index_groups, spec.widths[part.layer]
    rows = part.reached.view(groups, -1) * groups + torch.arange(groups, device=part.reached.device)[:, None]
    values = part.weight_sfr.view(-1, spec.kappa // groups)
    full = values.new_zeros(width * groups, spec.kappa // groups).index_add(0, rows.flatten(), values)
    weight: Tensor = full.unflatten(0, (width, groups)).transpose(1, 2).flatten(1)
    return weight


def spatial(spec: Spec, b: Tensor, part: Path) -> Tensor:
    if part.taps is not None:
        return rsdc2d.forward(
            b, part.weight3, part.taps, part.bias3, kernel_size=spec.kernel_size, groups=spec.groups
        )  # fmt: skip
    weight = part.weight3.unflatten(2, (spec.kernel_size, spec.kernel_size))
    return F.conv2d(b, weight, part.bias3, padding=spec.kernel_size // 2, groups=spec.groups)


def run(spec: Spec, t: Inputs) -> Outputs:
    """All outputs; y is differentiable, the others are not."""
    stats: tuple[list[Tensor], ...] = ([], [], [])
    mids: list[Tensor] = []
    news: list[Tensor] = []
    x = t.x
    for layer in paths_of(spec, t):
        pieces = x.chunk(spec.paths, 1)
        hidden, middle = [], []
        last: list[Tensor] = []
        for piece, part in zip(pieces, layer, strict=True):
            read = piece if part.chosen is None else piece.index_select(1, part.chosen)
            a = normalise(spec, read, part.norm1, last).relu()
            first = spec.starts[part.layer] + part.path * spec.widths[part.layer]
            middle.append(pointwise(spec, drop(spec, a, t.seed, first), part))
            hidden.append(spatial(spec, normalise(spec, middle[-1], part.norm2, stats[1]).relu(), part))
        if spec.version == 2:
            pieces = tuple(
                piece
                + F.conv2d(normalise(spec, h, part.norm3, stats[2]).relu(), reactivating(spec, part)[:, :, None, None])
                for piece, h, part in zip(pieces, hidden, layer, strict=True)
            )
            stats[0].extend(last)
        elif last:
            stats[0][:] = last
        mids.append(torch.cat(middle, 1).detach())
        news.append(torch.cat(hidden, 1).detach())
        destination = spec.destination(layer[0].layer)
        source = [destination.index(p) for p in range(spec.paths)]
        x = torch.cat([torch.cat([piece, hidden[source[p]]], 1) for p, piece in enumerate(pieces)], 1)
    y = x
    empty = y.detach().new_zeros((2, 0), dtype=spec.acc_dtype)
    one, two, three = (torch.cat(s, 1).detach() if s else empty.clone() for s in stats)
    return Outputs(y, one, two, three, flat_mid(spec, mids, news, y))


def flat_mid(spec: Spec, mids: list[Tensor], news: list[Tensor], y: Tensor) -> Tensor:
    if not spec.keep:
        return y.detach().new_zeros(0)
    order = (0, 2, 3, 1) if spec.mid_layout == "nhwc" else (0, 1, 2, 3)
    parts = [t.permute(order).reshape(-1) for t in (mids if spec.version == 1 else mids + news)]
    if spec.version == 2:
        parts.append(y.detach().new_zeros(spec.n * spec.paths * spec.widths[-2] * spec.h * spec.w))
    return torch.cat(parts)


def restore(spec: Spec, y: Tensor) -> Tensor:
    """x, out of an output of version 1."""
    return spec.prefix(y).flatten(1, 2)


def why_not(spec: Spec) -> str | None:
    return None


def fwd(spec: Spec, t: Inputs) -> Outputs:
    out = run(spec, t)
    if out.y.stride() == spec.y_stride:
        return out
    return out._replace(y=out.y.new_empty_strided(spec.y_shape, spec.y_stride).copy_(out.y))


def bwd(spec: Spec, g: Tensor, t: Inputs, out: Outputs) -> tuple[Tensor | None, ...]:
    return gradients(spec, g, t if t.x is not None else t._replace(x=restore(spec, out.y)), run)


def gradients(spec: Spec, g: Tensor, t: Inputs, forward: Any) -> tuple[Tensor | None, ...]:
    """By torch's autograd through ``forward``."""
    with recording():
        leaves = [None if one is None else one.detach().requires_grad_() for one in t[:DIFFERENTIABLE]]
        wanted = [one for one in leaves if one is not None]
        found = iter(torch.autograd.grad(forward(spec, Inputs(*leaves, *t[DIFFERENTIABLE:])).y, wanted, g))
    grads = [None if one is None else next(found) for one in leaves]
    gx = grads[0]
    assert gx is not None
    if gx.stride() != spec.dense_x_stride:
        gx = gx.new_empty_strided(spec.x_shape, spec.dense_x_stride).copy_(gx)
    return (gx, *(None if one is None else one.contiguous() for one in grads[1:]))


def forward(*args: Tensor, **kwargs: Any) -> Tensor:
    """What ``mldn_block`` means, with its arguments; differentiable, for any device."""
    from lightkernels.ops.mldn_block.op import prepare

    t, values = prepare(*args, **kwargs)
    metas = (None if one is None else TensorMeta.of(one) for one in t)
    return run(Spec.of(Inputs(*metas), *values), t).y

"""PyTorch's best: all paths of a layer in one grouped call, new channels written where the next layer reads them.

Version 1 has its own backward. What follows from the mean and the variance of a channel is subtracted once for all
layers that read it, when the layer that made it is reached: gamma times the gradients of a norm's gamma and beta are
the sums that it takes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import torch.nn.grad
from torch import Tensor

from lightkernels.ops.mldn_block import reference
from lightkernels.ops.mldn_block.spec import Inputs, Outputs, Spec

_backward = torch.ops.aten.native_batch_norm_backward.default


def why_not(spec: Spec) -> str | None:
    return None


class Layer:
    """One layer's slices of the packed tensors, over all paths, in the dtype that is computed with."""

    def __init__(self, spec: Spec, t: Inputs, layer: int) -> None:
        paths, kappa, mid, acc = spec.paths, spec.kappa, spec.mid, spec.acc_dtype
        self.width = width = spec.widths[layer]
        self.columns = slice(spec.starts[layer], spec.starts[layer + 1])
        self.mids = slice(layer * paths * mid, (layer + 1) * paths * mid)
        self.outs = slice(layer * paths * kappa, (layer + 1) * paths * kappa)
        self.ones = slice(mid * self.columns.start, mid * self.columns.stop)
        self.sfrs = slice(kappa * self.columns.start, kappa * self.columns.stop)
        per = kappa * paths * (mid // spec.groups) * spec.taps
        self.threes = slice(layer * per, (layer + 1) * per)
        self.weight1 = t.weight1[self.ones].view(paths * mid, width, 1, 1).to(acc)
        self.cells = None if t.taps is None else cells(spec, t.taps, layer)
        self.weight3 = dense(spec, t.weight3[self.threes], self.cells).to(acc)
        self.bias3 = None if t.bias3 is None else t.bias3[self.outs].to(acc)
        self.norm1 = t.affine1[:, self.columns]
        self.norm2 = t.affine2[:, self.mids]
        self.norm3 = None if t.affine3 is None else t.affine3[:, self.outs]
        self.sfr = None if t.weight_sfr is None else t.weight_sfr[self.sfrs].view(-1, kappa, 1, 1).to(acc)


def cells(spec: Spec, taps: Tensor, layer: int) -> Tensor:
    """[P kappa, m / groups, T]: where each weight lies in its window."""
    own = taps.view(spec.layers, spec.paths * spec.sets, spec.taps)[layer]
    own = own.repeat_interleave(spec.kappa // spec.sets, 0)
    return own[:, None].expand(-1, spec.mid // spec.groups, -1)


def dense(spec: Spec, weight: Tensor, where: Tensor | None) -> Tensor:
    k = spec.kernel_size
    shape = (spec.paths * spec.kappa, spec.mid // spec.groups)
    weight = weight.view(*shape, spec.taps)
    if where is not None:
        weight = weight.new_zeros(*shape, k * k).scatter(2, where, weight)
    return weight.view(*shape, k, k)


def moments(t: Tensor) -> Tensor:
    """[2, channels]: mean and biased variance of [N, channels, H, W]."""
    var, mean = torch.var_mean(t, (0, 2, 3), correction=0)
    return torch.stack([mean, var])


def affine(spec: Spec, norm: Tensor, stats: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift of a norm, [channels, 1, 1]."""
    scale = norm[0] * (stats[1] + spec.eps).rsqrt()
    return scale[:, None, None], (norm[1] - stats[0] * scale)[:, None, None]


def activated(spec: Spec, u: Tensor, norm: Tensor, stats: Tensor) -> Tensor:
    """relu(norm(u)), in the dtype that is computed with; u [N, channels, H, W] or [N, P, channels, H, W]."""
    scale, shift = affine(spec, norm, stats)
    if u.dim() == 5:
        scale, shift = (v.view(spec.paths, -1, 1, 1) for v in (scale, shift))
    return torch.addcmul(shift, u.to(spec.acc_dtype), scale).relu_()


def mask(spec: Spec, t: Inputs, columns: slice) -> Tensor | None:
    if spec.dropout == 0:
        return None
    kept = reference.kept(spec, t.seed, columns.start, columns.stop - columns.start)
    return kept.to(spec.acc_dtype).mul_(1 / (1 - spec.dropout))


def source(spec: Spec, layer: int) -> list[int]:
    """For each path, the path whose new channels it receives."""
    destination = spec.destination(layer)
    return [destination.index(p) for p in range(spec.paths)]


def three(spec: Spec, b: Tensor, own: Layer) -> Tensor:
    return F.conv2d(b, own.weight3, own.bias3, padding=spec.kernel_size // 2, groups=spec.paths * spec.groups)


def first(spec: Spec, t: Inputs, y: Tensor, own: Layer, layer: int, stats: Tensor) -> tuple[Tensor, Tensor | None]:
    """What enters the 1x1, [N, P c_l, H, W], and the dropout's factors."""
    a = activated(spec, spec.prefix(y, layer), own.norm1, stats).flatten(1, 2)
    factors = mask(spec, t, own.columns)
    return (a if factors is None else a.mul_(factors)), factors


def fwd(spec: Spec, t: Inputs) -> Outputs:
    if spec.empty or spec.index_groups:
        return reference.fwd(spec, t)
    y = t.x.new_empty_strided(spec.y_shape, spec.y_stride)
    spec.prefix(y).copy_(spec.by_path(t.x))
    buffer = spec.by_path(y)
    stats = [y.new_empty(shape, dtype=spec.acc_dtype) for shape in spec.stats_shapes]
    shared = stats[0].view(2, spec.paths, -1)
    if spec.batch_stats and spec.version == 1:
        shared[:, :, : spec.widths[0]] = moments(t.x.to(spec.acc_dtype)).view(2, spec.paths, -1)
    middle: list[Tensor] = []
    news: list[Tensor] = []
    for layer in range(spec.layers):
        own = Layer(spec, t, layer)
        if not spec.batch_stats:
            stats1 = t.running1[:, own.columns]
        elif spec.version == 1:
            stats1 = shared[:, :, : own.width].flatten(1)
        else:
            stats1 = moments(spec.prefix(y, layer).flatten(1, 2).to(spec.acc_dtype))
            stats[0][:, own.columns] = stats1
        a, _ = first(spec, t, y, own, layer, stats1)
        z = F.conv2d(a, own.weight1, groups=spec.paths).to(spec.dtype)
        stats2 = moments(z.to(spec.acc_dtype)) if spec.batch_stats else t.running2[:, own.mids]
        if spec.batch_stats:
            stats[1][:, own.mids] = stats2
        h = three(spec, activated(spec, z, own.norm2, stats2), own).to(spec.dtype)
        if own.sfr is not None and own.norm3 is not None:
            stats3 = moments(h.to(spec.acc_dtype)) if spec.batch_stats else t.running3[:, own.outs]
            if spec.batch_stats:
                stats[2][:, own.outs] = stats3
            r = F.conv2d(activated(spec, h, own.norm3, stats3), own.sfr, groups=spec.paths)
            spec.prefix(y, layer).add_(spec.by_path(r))
        new = spec.by_path(h)[:, source(spec, layer)]
        buffer[:, :, own.width : own.width + spec.kappa] = new
        if spec.batch_stats and spec.version == 1 and layer + 1 < spec.layers:
            fresh = moments(new.flatten(1, 2).to(spec.acc_dtype)).view(2, spec.paths, -1)
            shared[:, :, own.width : own.width + spec.kappa] = fresh
        middle.append(z)
        news.append(h)
    return Outputs(y, stats[0], stats[1], stats[2], reference.flat_mid(spec, middle, news, y))


def bwd(spec: Spec, g: Tensor, t: Inputs, out: Outputs) -> tuple[Tensor | None, ...]:
    if spec.version == 2:
        return reference.gradients(spec, g, t, grouped)
    if spec.empty or spec.index_groups:
        return reference.bwd(spec, g, t, out)
    acc, count = spec.acc_dtype, spec.n * spec.h * spec.w
    # The gradient of the buffer, and the two sums that each of its channels' norms take.
    whole = torch.empty_strided(spec.y_shape, spec.y_stride, dtype=acc, device=g.device).copy_(g)
    total = spec.by_path(whole)
    sums = whole.new_zeros(2, spec.paths, spec.widths[-1])
    grads = [None if one is None else torch.empty_like(one) for one in t[1:8]]
    gw1, gw3, ga1, ga2, gb3 = grads[:5]
    assert gw1 is not None and gw3 is not None and ga1 is not None and ga2 is not None
    for layer in reversed(range(spec.layers)):
        own = Layer(spec, t, layer)
        new = slice(own.width, own.width + spec.kappa)
        finish(spec, out, total, sums, new, count)
        destination = list(spec.destination(layer))
        gh = total[:, :, new][:, destination].flatten(1, 2)
        stats1 = (
            out.stats1.view(2, spec.paths, -1)[:, :, : own.width].flatten(1)
            if spec.batch_stats
            else t.running1[:, own.columns]
        )
        a, factors = first(spec, t, out.y, own, layer, stats1)
        z = middle_of(spec, t, out, own, layer, a)
        stats2 = out.stats2[:, own.mids] if spec.batch_stats else t.running2[:, own.mids]
        b = activated(spec, z, own.norm2, stats2)
        split = {"padding": spec.kernel_size // 2, "groups": spec.paths * spec.groups}
        gz = torch.nn.grad.conv2d_input(b.shape, own.weight3, gh, **split).mul_(b > 0)
        dense3 = torch.nn.grad.conv2d_weight(b, own.weight3.shape, gh, **split).flatten(2)
        gw3[own.threes] = (dense3 if own.cells is None else dense3.gather(2, own.cells)).flatten().to(spec.dtype)
        if gb3 is not None:
            gb3[own.outs] = gh.sum((0, 2, 3)).to(spec.dtype)
        gz, ga2[0, own.mids], ga2[1, own.mids] = through(spec, gz, z, own.norm2, stats2, spec.batch_stats)
        ga = torch.nn.grad.conv2d_input(a.shape, own.weight1, gz, groups=spec.paths)
        gw1[own.ones] = (
            torch.nn.grad.conv2d_weight(a, own.weight1.shape, gz, groups=spec.paths).flatten().to(spec.dtype)
        )
        ga = ga.mul_(a > 0) if factors is None else ga.mul_(factors).mul_(a > 0)
        u = spec.prefix(out.y, layer).flatten(1, 2)
        ga, dgamma, dbeta = through(spec, ga, u, own.norm1, stats1, False)
        ga1[0, own.columns], ga1[1, own.columns] = dgamma, dbeta
        total[:, :, : own.width].add_(spec.by_path(ga))
        sums[:, :, : own.width] += torch.stack([own.norm1[0] * dbeta, own.norm1[0] * dgamma]).view(2, spec.paths, -1)
    finish(spec, out, total, sums, slice(0, spec.widths[0]), count)
    gx = g.new_empty_strided(spec.x_shape, spec.dense_x_stride)
    spec.by_path(gx).copy_(total[:, :, : spec.widths[0]])
    return (gx, *grads)


def middle_of(spec: Spec, t: Inputs, out: Outputs, own: Layer, layer: int, a: Tensor) -> Tensor:
    """The 1x1's output: kept, or computed again."""
    if not spec.keep:
        return F.conv2d(a, own.weight1, groups=spec.paths).to(spec.dtype)
    channels = spec.paths * spec.mid
    flat = out.mid.view(spec.layers, -1)[layer]
    if spec.mid_layout == "nhwc":
        return flat.view(spec.n, spec.h, spec.w, channels).permute(0, 3, 1, 2)
    return flat.view(spec.n, channels, spec.h, spec.w)


def through(
    spec: Spec, g: Tensor, u: Tensor, norm: Tensor, stats: Tensor, batch: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Backward of a norm: of its input (statistics constant unless ``batch``), of gamma and of beta."""
    mean, var = stats[0].contiguous(), stats[1].contiguous()
    inverse = (var + spec.eps).rsqrt()
    u = u.to(spec.acc_dtype)
    known = (None, None, mean, inverse) if batch else (mean, var, None, None)
    found: tuple[Tensor, Tensor, Tensor] = _backward(g, u, norm[0].contiguous(), *known, batch, spec.eps, [True] * 3)
    return found


def finish(spec: Spec, out: Outputs, total: Tensor, sums: Tensor, channels: slice, count: int) -> None:
    """Subtract what follows from the statistics: the gradient of these channels is then complete."""
    if not spec.batch_stats or channels.start >= spec.widths[-2]:
        return
    stats = out.stats1.view(2, spec.paths, -1)[:, :, channels, None, None]
    inverse = (stats[1] + spec.eps).rsqrt()
    mean, product = sums[:, :, channels, None, None] / count
    u = spec.by_path(out.y)[:, :, channels].to(spec.acc_dtype)
    total[:, :, channels].sub_(((u - stats[0]) * (inverse * product) + mean) * inverse)


def grouped(spec: Spec, t: Inputs) -> Any:
    """Either version with one call for all paths, differentiable by torch."""
    x = spec.by_path(t.x)
    for layer in range(spec.layers):
        own = Layer(spec, t, layer)
        running = [None if r is None else r for r in (t.running1, t.running2, t.running3)]
        slices = (own.columns, own.mids, own.outs)

        def norm(u: Tensor, which: int, affine: Tensor, running: Any = running, slices: Any = slices) -> Tensor:
            mean, var = (None, None) if running[which] is None else running[which][:, slices[which]].unbind()
            wide = u.to(spec.acc_dtype)
            return F.batch_norm(wide, mean, var, affine[0], affine[1], mean is None, 0.0, spec.eps).relu_()

        a = norm(x.flatten(1, 2), 0, own.norm1)
        factors = mask(spec, t, own.columns)
        z = F.conv2d(a if factors is None else a * factors, own.weight1, groups=spec.paths).to(spec.dtype)
        h = three(spec, norm(z, 1, own.norm2), own).to(spec.dtype)
        if own.sfr is not None and own.norm3 is not None:
            r = F.conv2d(norm(h, 2, own.norm3), own.sfr, groups=spec.paths)
            x = x + spec.by_path(r).to(spec.dtype)
        x = torch.cat([x, spec.by_path(h)[:, source(spec, layer)]], 2)
    nothing = t.x.new_empty(0)
    return Outputs(x.flatten(1, 2), nothing, nothing, nothing, nothing)

"""A dense block of MLDN written without split and concat, in the ways that its description says are the same."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .mldn import composite, correction, partners
from .mldn_layers import EPS, Run, activate
from .mldn_plan import Block


def flat_concat(run: Run, x: Tensor, block: Block) -> Tensor:
    """Slices of one tensor, and one concatenation a layer."""
    for layer in range(block.layers):
        name, c = f"layers.{layer}.", block.width(layer)
        paths = [x[:, p * c : (p + 1) * c] for p in range(block.paths)]
        results = [composite(run, part, block, name, p) for p, part in enumerate(paths)]
        if block.version == 2:
            paths = [part + correction(run, results[p], block, name, p) for p, part in enumerate(paths)]
        kept = [results[q] for q in partners(block.pairing, block.paths, layer)]
        x = torch.cat([piece for pair in zip(paths, kept, strict=True) for piece in pair], 1)
    return x


def path_major(run: Run, x: Tensor, block: Block) -> Tensor:
    """One buffer (N, P, channels of a path at the end, H, W); a path reads a prefix of its row."""
    n, _, height, width = x.shape
    start = block.width(0)
    buffer = x.new_full((n, block.paths, block.width(block.layers), height, width), torch.nan)
    buffer[:, :, :start] = x.view(n, block.paths, start, height, width)
    for layer in range(block.layers):
        name, c = f"layers.{layer}.", block.width(layer)
        results = [composite(run, buffer[:, p, :c], block, name, p) for p in range(block.paths)]
        for p, q in enumerate(partners(block.pairing, block.paths, layer)):
            if block.version == 2:
                buffer[:, p, :c] += correction(run, results[p], block, name, p)
            buffer[:, p, c : c + block.kappa] = results[q]
    return buffer.flatten(1, 2)


def append_index(block: Block, layer: int) -> Tensor:
    """(P, channels of a path) places in the append order of what each path sees on entering a layer."""
    rows = []
    for p in range(block.paths):
        row = list(range(p * block.width(0), (p + 1) * block.width(0)))
        for earlier in range(layer):
            first = block.channels + earlier * block.growth
            first += partners(block.pairing, block.paths, earlier)[p] * block.kappa
            row += range(first, first + block.kappa)
        rows.append(row)
    return torch.tensor(rows)


def append_order(run: Run, x: Tensor, block: Block) -> Tensor:
    """One buffer (N, channels, H, W) in which every layer's results stand behind those before, path by path."""
    buffer = x.new_full((x.shape[0], block.out, *x.shape[2:]), torch.nan)
    buffer[:, : block.channels] = x
    for layer in range(block.layers):
        name, end = f"layers.{layer}.", block.channels + layer * block.growth
        for p, index in enumerate(append_index(block, layer)):
            at = end + p * block.kappa
            result = composite(run, buffer[:, index], block, name, p)
            buffer[:, at : at + block.kappa] = result
            if block.version == 2:
                buffer[:, index] += correction(run, result, block, name, p)
    return buffer[:, append_index(block, block.layers).flatten()]


def one_call_a_layer(run: Run, x: Tensor, block: Block) -> Tensor:
    """Version 1 with all paths of a layer in one norm, one grouped 1x1, one norm and one grouped 3x3."""
    assert block.version == 1 and block.rsdc is None and not block.excite

    def norm(y: Tensor, name: str) -> Tensor:
        gamma, beta, mean, variance = (
            run.get(f"{name}.{leaf}").flatten() for leaf in ("gamma", "beta", "mean", "variance")
        )
        y = F.batch_norm(y, mean.clone(), variance.clone(), gamma, beta, run.training, eps=EPS)
        return activate(y, block.hswish)

    for layer in range(block.layers):
        name = f"layers.{layer}."
        mask = run.get(f"{name}mask").repeat(1, block.mid // block.groups, 1)
        weight = (run.get(f"{name}squeeze") * mask).flatten(0, 1)[:, :, None, None]
        y = F.conv2d(norm(x, f"{name}norm1"), weight, groups=block.paths)
        third = run.get(f"{name}conv").flatten(0, 1)
        y = F.conv2d(norm(y, f"{name}norm2"), third, padding=1, groups=block.paths * block.g3)
        grid = (x.shape[0], block.paths, -1, *x.shape[2:])
        kept = y.view(grid)[:, partners(block.pairing, block.paths, layer)]
        x = torch.cat((x.view(grid), kept), 2).flatten(1, 2)
    return x


def undo(run: Run, x: Tensor, block: Block) -> Tensor:
    """The input of a block of version 2 from its output: a correction follows from the result that is still there."""
    assert block.version == 2
    for layer in reversed(range(block.layers)):
        name, c = f"layers.{layer}.", block.width(layer)
        parts = torch.split(x, c + block.kappa, 1)
        results = {q: parts[p][:, c:] for p, q in enumerate(partners(block.pairing, block.paths, layer))}
        x = torch.cat([part[:, :c] - correction(run, results[p], block, name, p) for p, part in enumerate(parts)], 1)
    return x

"""The calls that tests and benchmarks run, and the definition as plain loops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightkernels._core.pairing import destination
from lightkernels._core.taps import draw
from lightkernels.testing import Case, Draw, Sample


def case(
    name: str,
    shape: tuple[int, int, int, int],
    layers: int,
    paths: int,
    growth: int,
    tags: str = "",
    *,
    groups: int = 1,
    version: int = 1,
    pairing: str = "xor1",
    bottleneck: int = 2,
    kernel_size: int = 3,
    sets: int = 0,
    taps: int = 9,
    bias: bool = False,
    running: bool = False,
    dropout: float = 0.0,
    recompute: bool = False,
) -> Case:
    """A row of the table; ``sets`` above 0: taps are drawn."""

    def make(sample: Draw) -> Sample:
        kappa = growth // paths
        mid, many = bottleneck * kappa, layers * paths
        columns = sum(paths * (shape[1] // paths + i * kappa) for i in range(layers))
        sizes = [columns, many * mid, *([many * kappa] if version == 2 else [])]
        x = sample.image(*shape)
        inner = kappa * (mid // groups) * (taps if sets else kernel_size**2)
        tensors: list[Tensor | None] = [x, sample.tensor(mid * columns), sample.tensor(many * inner)]
        tensors += [sample.tensor(2, n) for n in sizes[:2]]
        tensors += [sample.tensor(many * kappa) if bias else None]
        tensors += [sample.tensor(columns * kappa), sample.tensor(2, sizes[2])] if version == 2 else [None, None]
        values: dict[str, Any] = {"num_layers": layers, "paths": paths, "growth": growth, "bottleneck": bottleneck}
        values |= {"groups": groups, "version": version, "pairing": pairing, "kernel_size": kernel_size}
        values |= {"dropout": dropout, "recompute": recompute}
        if sets:
            values["taps"] = draw(many * sets, taps, kernel_size, generator=sample.generator, device=sample.device)
        if dropout:
            values["seed"] = torch.tensor(0x5EED_0123_4567, device=sample.device)
        if running:
            for i, n in enumerate(sizes):
                mean, var = sample.tensor(n), sample.tensor(n).double().square() + 0.5
                wide = torch.float64 if sample.dtype is torch.float64 else torch.float32
                values[f"running{i + 1}"] = torch.stack([mean.to(wide), var.to(wide)])
        return Sample(tuple(tensors), values)

    return Case(name, make, frozenset(tags.split()))


CASES: tuple[Case, ...] = (
    case("two_paths", (2, 4, 5, 6), 3, 2, 4, "core", groups=2),
    case("rsdc", (2, 4, 6, 5), 2, 2, 4, "core", groups=2, kernel_size=5, sets=2, bias=True, dropout=0.25),
    case("second", (2, 4, 4, 5), 2, 2, 2, "core", version=2),
    # Small enough for numerical derivatives.
    case("tiny", (1, 2, 2, 2), 2, 2, 2, "tiny", bottleneck=1),
    case("tiny_second", (1, 2, 2, 2), 2, 2, 2, "tiny", bottleneck=1, version=2, dropout=0.25),
    case("tiny_running", (1, 2, 1, 2), 2, 2, 2, "tiny", bottleneck=1, running=True),
    # Paths, pairings, modes.
    case("one_path", (2, 3, 4, 5), 2, 1, 2, bias=True),
    case("four_paths", (3, 8, 4, 3), 3, 4, 8, pairing="butterfly", recompute=True),
    case("rotated", (2, 8, 3, 4), 4, 4, 4, pairing="rotate", kernel_size=5, sets=1),
    case("evaluation", (2, 4, 5, 4), 2, 2, 4, groups=2, running=True, kernel_size=7, sets=1, taps=5),
    case("evaluation_second", (1, 4, 3, 4), 2, 2, 2, running=True, version=2),
    case("empty_batch", (0, 4, 3, 3), 2, 2, 2, running=True),
    case("bulk", (4, 16, 17, 9), 4, 2, 16, "bulk", groups=4, bottleneck=4),
    case("bulk_rsdc", (3, 16, 9, 17), 3, 2, 16, "bulk", groups=4, bottleneck=4, kernel_size=5, sets=8),
)


def oracle(
    x: Tensor,
    weight1: Tensor,
    weight3: Tensor,
    affine1: Tensor,
    affine2: Tensor,
    bias3: Tensor | None,
    weight_sfr: Tensor | None,
    affine3: Tensor | None,
    **values: Any,
) -> Tensor:
    """The definition in loops over layers, paths, channels and cells; the norms and the dropout by their formulas."""
    layers, paths, growth = values["num_layers"], values["paths"], values["growth"]
    kappa, size, eps = growth // paths, values["kernel_size"], 1e-5
    mid, groups, taps = values["bottleneck"] * kappa, values["groups"], values.get("taps")
    count = size * size if taps is None else taps.shape[1]
    n, _, height, width = x.shape
    wide = [None if t is None else t.double() for t in (weight1, weight3, affine1, affine2, bias3, weight_sfr, affine3)]
    w1, w3, norm1, norm2, b3, wr, norm3 = wide
    state = [list(part.unbind(1)) for part in x.double().chunk(paths, 1)]
    column = 0

    def norm(u: Tensor, at: int, affine: Any, running: Tensor | None) -> Any:
        mean, var = (u.mean(), u.var(correction=0)) if running is None else (running[0, at], running[1, at])
        return ((u - mean) / (var + eps).sqrt() * affine[0, at] + affine[1, at]).clamp(min=0)

    for layer in range(layers):
        inputs, hidden = len(state[0]), []
        for p in range(paths):
            block = layer * paths + p
            first = [norm(u, column + p * inputs + j, norm1, values.get("running1")) for j, u in enumerate(state[p])]
            if values["dropout"]:
                first = [a * factors(values, column + p * inputs + j, n, height, width) for j, a in enumerate(first)]
            rows = w1[mid * (column + p * inputs) :][: mid * inputs].view(mid, inputs)  # type: ignore[index]
            middle = [sum((row[j] * a for j, a in enumerate(first)), torch.zeros(())) for row in rows]
            second = [norm(u, block * mid + o, norm2, values.get("running2")) for o, u in enumerate(middle)]
            cells = w3.view(layers * paths, kappa, mid // groups, count)[block]  # type: ignore[union-attr]
            fresh = []
            for o in range(kappa):
                h = torch.zeros(n, height, width, dtype=torch.float64)
                sets = 0 if taps is None else taps.shape[0] // (layers * paths)
                own = range(count) if taps is None else taps[block * sets + o // (kappa // sets)].tolist()
                for i in range(mid // groups):
                    for t, cell in enumerate(own):
                        h += cells[o, i, t] * moved(second[o // (kappa // groups) * (mid // groups) + i], cell, size)
                fresh.append(h if b3 is None else h + b3[block * kappa + o])
            hidden.append(fresh)
        if wr is not None:
            for p in range(paths):
                at = (layer * paths + p) * kappa
                third = [norm(h, at + i, norm3, values.get("running3")) for i, h in enumerate(hidden[p])]
                rows = wr[kappa * (column + p * inputs) :][: kappa * inputs].view(inputs, kappa)
                for j in range(inputs):
                    state[p][j] = state[p][j] + sum(rows[j, i] * a for i, a in enumerate(third))
        for p, d in enumerate(destination(values["pairing"], paths, layer)):
            state[d] = state[d] + hidden[p]
        column += paths * inputs
    return torch.stack([u for part in state for u in part], 1)


def moved(u: Tensor, cell: int, size: int) -> Tensor:
    """[N, H, W] seen from a cell of the window, zeros outside."""
    down, right = cell // size - size // 2, cell % size - size // 2
    _, height, width = u.shape
    out = torch.zeros_like(u)
    ys, xs = range(max(0, -down), min(height, height - down)), range(max(0, -right), min(width, width - right))
    if ys and xs:
        out[:, ys.start : ys.stop, xs.start : xs.stop] = u[
            :, ys.start + down : ys.stop + down, xs.start + right : xs.stop + right
        ]
    return out


def factors(values: dict[str, Any], row: int, n: int, height: int, width: int) -> Tensor:
    """What dropout multiplies a channel by, [N, H, W], in Python integers."""

    def mix(v: int) -> int:  # 32 bits, as in the reference
        v ^= v >> 16
        v = v * 0x7FEB352D % 2**32
        v ^= v >> 15
        v = v * 0x846CA68B % 2**32
        return v ^ v >> 16

    seed, rate = int(values["seed"]), values["dropout"]
    key = mix(mix(row ^ seed % 2**32) ^ (seed >> 32) % 2**32)
    least = min(2**32 - 1, round(rate * 2**32))
    kept = [mix(pixel ^ key) >= least for pixel in range(n * height * width)]
    keeps: Tensor = torch.tensor(kept, dtype=torch.float64).view(n, height, width) / (1 - rate)
    return keeps

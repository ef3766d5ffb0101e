"""The calls that tests and benchmarks run, and the definition as plain loops."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightkernels.testing import Case, Draw, Sample


def _branch_channels(channels: int, count: int, split: bool) -> list[int]:
    """All channels for each branch, or equal parts with the remainder to the first."""
    if not split:
        return [channels] * count
    part = channels // count
    return [channels - part * (count - 1)] + [part] * (count - 1)


def case(
    name: str,
    shape: tuple[int, int, int, int],
    kernels: Sequence[int],
    tags: str = "",
    *,
    bias: bool = True,
    stride: int | tuple[int, int] = 1,
    dilations: int | tuple[int, ...] = 1,
    combine: str = "concat",
    split: bool = False,
) -> Case:
    """A row of the table; tests outside of it may make their own."""
    channels = _branch_channels(shape[1], len(kernels), split)
    c_out = shape[1] if combine == "add" else sum(channels)

    def make(draw: Draw) -> Sample:
        x = draw.image(*shape)
        weights = [draw.tensor(m, 1, k, k) for m, k in zip(channels, kernels, strict=True)]
        b = draw.tensor(c_out) if bias else None
        return Sample((x, weights, b), {"stride": stride, "dilations": dilations, "combine": combine, "split": split})

    return Case(name, make, frozenset(tags.split()))


_BENCH_SHAPES = (
    (64, 32, 32, 32),
    (64, 64, 16, 16),
    (128, 128, 8, 8),
    (8, 96, 56, 56),
    (32, 144, 28, 28),
    (32, 384, 14, 14),
    (32, 960, 7, 7),
    (1, 96, 56, 56),
)


def _bench(combine: str, kernels: Sequence[int]) -> list[Case]:
    name = combine if len(kernels) > 1 else f"single_{kernels[0]}"
    return [
        case(f"bench_{name}_{n}x{c}x{h}x{w}", (n, c, h, w), kernels, "bench", bias=False, combine=combine)
        for n, c, h, w in _BENCH_SHAPES
    ]


CASES: tuple[Case, ...] = (
    case("concat", (2, 5, 9, 8), (3, 5, 7), "core"),
    case("add", (2, 6, 8, 9), (3, 5, 7), "core", combine="add"),
    case("cumulative", (2, 3, 7, 9), (3, 5, 3), "core", dilations=(1, 1, 2), combine="cumulative"),
    case("split", (2, 7, 8, 7), (3, 5, 7), "core", split=True),
    case("single_stride_2", (2, 4, 9, 8), (5,), "core", stride=2, bias=False),
    # Small enough for numerical derivatives.
    case("tiny_concat", (2, 2, 4, 5), (3, 5), "tiny", stride=2),
    case("tiny_add", (1, 2, 5, 4), (3, 5), "tiny", combine="add", dilations=(2, 1)),
    case("tiny_cumulative", (1, 2, 4, 4), (1, 3, 3), "tiny", combine="cumulative", dilations=(1, 2, 1), bias=False),
    case("tiny_split", (1, 3, 4, 5), (5, 3), "tiny", split=True, stride=(1, 2)),
    # Strides and dilations.
    case("stride_2", (2, 4, 9, 8), (3, 5), stride=2, bias=False),
    case("stride_3", (2, 3, 11, 10), (3, 7), stride=3),
    case("stride_1x2", (1, 5, 8, 9), (5, 3), stride=(1, 2)),
    case("stride_3x1", (2, 4, 7, 6), (3,), stride=(3, 1), bias=False),
    case("stride_above_image", (2, 3, 3, 4), (3, 5), stride=7),
    case("add_stride_2", (2, 5, 9, 11), (3, 5, 7), combine="add", stride=2),
    case("cumulative_stride_2", (1, 4, 10, 7), (3, 3), combine="cumulative", stride=2, dilations=(1, 3)),
    case("split_stride_2", (2, 5, 7, 7), (3, 5), split=True, stride=2),
    case("dilated_concat", (2, 4, 10, 11), (3, 3, 3), dilations=(1, 2, 3)),
    case("dilated_add", (2, 4, 11, 10), (3, 3, 3), dilations=(1, 2, 3), combine="add"),
    case("dilated_add_stride_2", (1, 3, 9, 12), (5, 3), dilations=(2, 3), combine="add", stride=2, bias=False),
    case("dilated_beyond_image", (2, 3, 7, 6), (3, 5), dilations=(9, 2)),
    # Edges of size.
    case("empty_batch", (0, 4, 6, 5), (3, 5)),
    case("empty_batch_add", (0, 4, 6, 5), (3, 5), combine="add", stride=2),
    case("one_pixel", (3, 4, 1, 1), (3, 5, 7)),
    case("one_row", (2, 3, 1, 13), (3, 5)),
    case("one_column", (2, 3, 13, 1), (3, 5), combine="add"),
    case("kernel_above_image", (2, 3, 3, 4), (7, 11)),
    case("kernel_above_image_add", (1, 5, 4, 2), (9, 3), combine="add", stride=2),
    case("one_channel", (3, 1, 8, 9), (3, 5, 7)),
    case("one_channel_add", (1, 1, 9, 8), (3, 7), combine="add", bias=False),
    case("one_element", (1, 1, 1, 1), (1,)),
    case("split_one_each", (2, 3, 6, 7), (3, 5, 7), split=True),
    # Kernels and branches.
    case("pointwise", (2, 6, 5, 7), (1,)),
    case("single_3", (2, 8, 9, 9), (3,)),
    case("single_5", (1, 9, 8, 10), (5,), bias=False),
    case("single_7", (2, 3, 12, 11), (7,)),
    case("single_9", (1, 3, 12, 13), (9,), stride=2),
    case("single_11", (1, 4, 14, 12), (11,), bias=False),
    case("same_kernel_twice", (2, 4, 7, 8), (3, 3)),
    case("many_branches", (1, 3, 12, 13), (1, 3, 5, 7, 9, 11)),
    case("many_branches_add", (1, 3, 13, 12), (11, 9, 7, 5, 3, 1), combine="add"),
    case("many_branches_split", (1, 13, 8, 9), (3, 5, 7, 3, 5), split=True),
    case("many_branches_cumulative", (1, 2, 8, 9), (3, 3, 5, 3, 7), combine="cumulative", dilations=(1, 2, 1, 4, 1)),
    # Vector widths and tiles, and one more or less.
    case("channels_15", (2, 15, 5, 6), (3, 5)),
    case("channels_16", (2, 16, 6, 5), (3, 7), combine="add"),
    case("channels_17", (1, 17, 7, 5), (3, 5), stride=2),
    case("channels_33", (1, 33, 4, 6), (3, 5, 7), bias=False),
    case("columns_15", (1, 3, 6, 15), (3, 5)),
    case("columns_16", (1, 2, 7, 16), (3, 5, 7), combine="add"),
    case("columns_33", (1, 3, 5, 33), (5, 7), bias=False),
    case("columns_67", (1, 2, 5, 67), (3, 5), stride=2),
    case("image_7", (2, 24, 7, 7), (3, 5, 7)),
    case("image_14", (1, 20, 14, 14), (3, 5, 7), combine="add"),
    case("rows_40", (1, 2, 40, 9), (3, 7)),
    case("bulk_concat", (4, 32, 32, 32), (3, 5, 7), "bulk"),
    case("bulk_add", (3, 40, 30, 35), (3, 5, 7), "bulk", combine="add"),
    case("bulk_narrow", (40, 48, 7, 7), (3, 5, 7), "bulk"),
    case("bulk_narrow_tall", (12, 35, 41, 14), (3, 5, 3), "bulk", dilations=(1, 2, 3), combine="cumulative"),
    case("bulk_stride_2", (2, 37, 41, 38), (3, 5), "bulk", stride=2),
    case("bulk_split", (2, 50, 28, 28), (3, 5, 7), "bulk", split=True, bias=False),
    case("bulk_dilated", (2, 33, 29, 31), (3, 3, 3), "bulk", dilations=(1, 2, 3), combine="cumulative"),
    *_bench("concat", (3, 5, 7)),
    *_bench("add", (3, 5, 7)),
    *_bench("concat", (3,)),
    *_bench("concat", (7,)),
)


def oracle(
    x: Tensor,
    weights: Sequence[Tensor],
    bias: Tensor | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    dilations: int | Sequence[int] = 1,
    combine: str = "concat",
    split: bool = False,
) -> Tensor:
    """The definition, one product after another, in Python floats."""
    sh, sw = (stride, stride) if isinstance(stride, int) else stride
    n, _, h, w = x.shape
    ho, wo = -(-h // sh), -(-w // sw)
    rates = [dilations] * len(weights) if isinstance(dilations, int) else dilations
    pixels, maps, start = x.tolist(), [], 0
    for weight, d in zip(weights, rates, strict=True):
        taps, k, r = weight.tolist(), weight.shape[-1], weight.shape[-1] // 2
        y = torch.zeros(n, weight.shape[0], ho, wo, dtype=torch.float64)
        for b in range(n):
            for m in range(weight.shape[0]):
                plane = pixels[b][start + m if split else m]
                for i in range(ho):
                    for j in range(wo):
                        y[b, m, i, j] = sum(
                            taps[m][0][u][v] * plane[i * sh + d * (u - r)][j * sw + d * (v - r)]
                            for u in range(k)
                            for v in range(k)
                            if 0 <= i * sh + d * (u - r) < h and 0 <= j * sw + d * (v - r) < w
                        )
        maps.append(y)
        start += weight.shape[0]
    if combine == "add":
        total = torch.stack(maps).sum(0)
    elif combine == "cumulative":
        total = torch.cat([torch.stack(maps[: i + 1]).sum(0) for i in range(len(maps))], 1)
    else:
        total = torch.cat(maps, 1)
    return total if bias is None else total + bias.double().view(1, -1, 1, 1)

"""The calls that tests and benchmarks run, and the definition as plain loops."""

from __future__ import annotations

import torch
from torch import Tensor

from lightkernels._core.taps import draw
from lightkernels.testing import Case, Draw, Sample


def case(
    name: str,
    shape: tuple[int, int, int, int],
    filters: int,
    kernel_size: int = 5,
    tags: str = "",
    *,
    scope: str = "layer",
    taps: int = 9,
    bias: bool = True,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = "same",
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Case:
    """A row of the table; tests outside of it may make their own."""

    def make(sample: Draw) -> Sample:
        x = sample.image(*shape)
        weight = sample.tensor(filters, shape[1] // groups, taps)
        sets = {"layer": 1, "group": groups, "filter": filters}[scope]
        cells = draw(sets, taps, kernel_size, generator=sample.generator, device=sample.device)
        b = sample.tensor(filters) if bias else None
        values = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "dilation": dilation}
        return Sample((x, weight, cells, b), {**values, "groups": groups})

    return Case(name, make, frozenset(tags.split()))


def _bench() -> list[Case]:
    dense = ((16, 64, 56, 56), (16, 128, 28, 28), (16, 256, 14, 14))
    rows = [
        case(f"bench_{scope}_{k}_{n}x{c}x{h}x{w}", (n, c, h, w), c, k, "bench", scope=scope, bias=False)
        for scope in ("layer", "filter")
        for k in (5, 7)
        for n, c, h, w in dense
    ]
    mldn = (((64, 32, 32, 32), 8), ((64, 64, 16, 16), 16))
    for (n, c, h, w), filters in mldn:
        name = f"bench_mldn_{n}x{c}x{h}x{w}"
        rows.append(case(name, (n, c, h, w), filters, 5, "bench", scope="filter", groups=8, bias=False))
    for n, c, h, w in ((64, 64, 32, 32), (8, 96, 56, 56)):
        name = f"bench_depthwise_{n}x{c}x{h}x{w}"
        rows.append(case(name, (n, c, h, w), c, 5, "bench", scope="filter", groups=c, bias=False))
    return rows


CASES: tuple[Case, ...] = (
    case("layer", (2, 5, 8, 9), 6, tags="core"),
    case("group", (2, 6, 9, 8), 4, tags="core", scope="group", groups=2, stride=2),
    case("filter", (2, 4, 7, 9), 5, 7, tags="core", scope="filter", bias=False),
    case("depthwise", (2, 7, 8, 7), 7, scope="filter", groups=7),
    # Small enough for numerical derivatives.
    case("tiny_layer", (1, 2, 4, 5), 2, 3, "tiny", taps=3, stride=2),
    case("tiny_group", (2, 4, 3, 4), 2, 3, "tiny", taps=2, scope="group", groups=2, dilation=2, bias=False),
    case("tiny_filter", (1, 2, 4, 4), 3, 5, "tiny", taps=4, scope="filter", padding=(3, 2)),
    # Windows, numbers of taps, strides, paddings, dilations.
    case("one_tap", (2, 3, 6, 7), 4, taps=1),
    case("all_taps", (1, 3, 7, 6), 2, 3),
    case("window_1", (2, 4, 5, 6), 3, 1, taps=1),
    case("window_9", (1, 3, 12, 11), 4, 9, scope="filter", taps=13),
    case("stride_1x2", (1, 4, 8, 9), 6, scope="group", groups=2, stride=(1, 2)),
    case("stride_3_dilation_2", (2, 3, 13, 11), 4, stride=3, dilation=2, scope="filter"),
    case("no_padding", (2, 4, 9, 10), 3, padding=0),
    case("padding_above_window", (1, 3, 6, 5), 4, 3, taps=5, padding=(4, 3), scope="filter", bias=False),
    case("dilated_beyond_image", (1, 3, 5, 6), 4, dilation=(4, 3)),
    # Edges of size.
    case("empty_batch", (0, 4, 6, 5), 3, scope="filter"),
    case("one_pixel", (3, 4, 1, 1), 5, scope="filter"),
    case("one_channel", (2, 1, 7, 8), 1),
    case("one_row", (2, 3, 1, 13), 4, 7),
    # Groups: tiny ones as in MLDN, and a depth multiplier.
    case("tiny_groups", (2, 16, 8, 9), 4, scope="filter", groups=4),
    case("group_filters", (2, 8, 7, 8), 12, scope="filter", groups=4, stride=2),
    case("multiplier", (1, 5, 9, 8), 10, scope="group", groups=5),
    case("depthwise_planes", (9, 2, 25, 40), 2, 7, scope="filter", groups=2),
    case("depthwise_strips", (1, 2, 68, 35), 2, scope="filter", taps=11, groups=2, stride=(2, 1), padding=(1, 4)),
    case("depthwise_layer", (2, 9, 8, 7), 9, groups=9, bias=False),
    # Vector widths and tiles, and one more or less.
    case("channels_17", (1, 17, 6, 7), 33, scope="layer"),
    case("channels_16", (2, 16, 7, 9), 15, scope="filter"),
    case("columns_33", (1, 3, 5, 33), 4, 7),
    case("rows_40", (1, 2, 40, 9), 3),
    case("bulk_layer", (3, 24, 30, 35), 40, tags="bulk"),
    case("bulk_group", (2, 64, 17, 18), 48, 7, "bulk", scope="group", groups=4, stride=2),
    case("bulk_filter", (2, 32, 28, 28), 8, tags="bulk", scope="filter", groups=8),
    case("bulk_depthwise", (2, 37, 29, 31), 37, 7, "bulk", scope="filter", groups=37, bias=False),
    *_bench(),
)


def oracle(
    x: Tensor,
    weight: Tensor,
    taps: Tensor,
    bias: Tensor | None = None,
    *,
    kernel_size: int,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = "same",
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor:
    """The definition, one product after another, in Python floats."""
    (sh, sw), (dh, dw) = ((v, v) if isinstance(v, int) else v for v in (stride, dilation))
    k, filters, part = kernel_size, weight.shape[0], weight.shape[1]
    if isinstance(padding, str):
        ph, pw = dh * (k // 2), dw * (k // 2)
    else:
        ph, pw = (padding, padding) if isinstance(padding, int) else padding
    n, _, h, w = x.shape
    ho, wo = (h + 2 * ph - dh * (k - 1) - 1) // sh + 1, (w + 2 * pw - dw * (k - 1) - 1) // sw + 1
    pixels, values = x.tolist(), weight.tolist()
    y = torch.zeros(n, filters, ho, wo, dtype=torch.float64)
    for o in range(filters):
        first = o // (filters // groups) * part
        own = taps[o // (filters // taps.shape[0])].tolist()
        terms = [
            (first + c, cell // k * dh - ph, cell % k * dw - pw, values[o][c][t])
            for c in range(part)
            for t, cell in enumerate(own)
        ]
        for b in range(n):
            for i in range(ho):
                for j in range(wo):
                    y[b, o, i, j] = sum(
                        v * pixels[b][c][i * sh + dy][j * sw + dx]
                        for c, dy, dx, v in terms
                        if 0 <= i * sh + dy < h and 0 <= j * sw + dx < w
                    )
    return y if bias is None else y + bias.double().view(1, -1, 1, 1)

"""Small calls of every native kernel, for compute-sanitizer; prints how many ran."""

from __future__ import annotations

import torch

from lightkernels import mldn_block, multi_dwconv2d, rsdc2d
from lightkernels._core.taps import draw
from lightkernels.ops.mldn_block.cases import case

CALLS = (
    ((3, 2, 9, 20), (3, 5, 7), {}),
    ((2, 2, 7, 7), (3, 5, 7), {"combine": "add"}),
    ((1, 2, 70, 37), (7,), {}),
    ((2, 2, 6, 9), (3, 5), {"combine": "cumulative"}),
    ((2, 35, 19, 36), (3, 7), {"stride": 2}),
    ((2, 3, 9, 9), (3, 3), {"dilations": (1, 2)}),
)
# shape, filters, window, kind of sets, keyword arguments
RSDC = (
    ((2, 16, 9, 11), 24, 5, "layer", {}),
    ((2, 64, 9, 7), 80, 7, "group", {"groups": 2, "stride": 2}),
    ((1, 96, 13, 12), 96, 5, "layer", {"dilation": 2}),
    ((2, 6, 9, 8), 12, 5, "filter", {"groups": 2, "stride": (1, 2)}),
)


# Evaluations of blocks: a whole one in shared memory, bands of rows, cells of the paths' and of the filters' own.
BLOCKS = (
    case("whole", (2, 8, 8, 8), 3, 2, 24, groups=4, bottleneck=4, running=True),
    case("bands", (1, 16, 40, 36), 2, 2, 24, groups=4, bottleneck=4, running=True, bias=True),
    case("rsdc", (1, 8, 9, 7), 3, 4, 16, groups=2, kernel_size=5, sets=1, running=True, pairing="butterfly"),
    case("filters", (1, 8, 6, 5), 2, 4, 16, groups=2, kernel_size=5, sets=4, running=True),
)


def blocks() -> int:
    count = 0
    for one in BLOCKS:
        for dtype in (torch.bfloat16, torch.float32):
            for form in ("nchw", "nhwc"):
                sample = one.build(count, dtype, form, "cuda")
                kwargs = {k: v for k, v in sample.kwargs.items() if k != "recompute"}
                with torch.no_grad():
                    mldn_block(*sample.args, **kwargs, backend="cuda")
                count += 1
    return count


def rsdc() -> int:
    count = 0
    for shape, filters, k, scope, kwargs in RSDC:
        groups = kwargs.get("groups", 1)
        for dtype in (torch.bfloat16, torch.float32):
            for form in (torch.contiguous_format, torch.channels_last):
                x = torch.randn(shape, device="cuda").to(dtype).contiguous(memory_format=form).requires_grad_()
                w = torch.randn(filters, shape[1] // groups, 9, device="cuda").to(dtype).requires_grad_()
                taps = draw({"layer": 1, "group": groups, "filter": filters}[scope], 9, k, device="cuda")
                y = rsdc2d(x, w, taps, kernel_size=k, **kwargs, backend="cuda")
                torch.autograd.grad(y, [x, w], torch.ones_like(y))
                count += 1
    return count


def main() -> None:
    count = rsdc() + blocks()
    for shape, kernels, kwargs in CALLS:
        for dtype in (torch.bfloat16, torch.float32):
            for form in (torch.contiguous_format, torch.channels_last):
                x = torch.randn(shape, device="cuda").to(dtype).contiguous(memory_format=form).requires_grad_()
                weights = [torch.randn(shape[1], 1, k, k, device="cuda").to(dtype).requires_grad_() for k in kernels]
                y = multi_dwconv2d(x, weights, **kwargs, backend="cuda")
                torch.autograd.grad(y, [x, *weights], torch.ones_like(y))
                count += 1
    torch.cuda.synchronize()
    print(f"{count} calls, forward and gradients")


if __name__ == "__main__":
    main()

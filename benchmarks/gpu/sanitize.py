"""Small calls of every native kernel, for compute-sanitizer; prints how many ran."""

from __future__ import annotations

import torch

from lightkernels import multi_dwconv2d

CALLS = (
    ((3, 2, 9, 20), (3, 5, 7), {}),
    ((2, 2, 7, 7), (3, 5, 7), {"combine": "add"}),
    ((1, 2, 70, 37), (7,), {}),
    ((2, 2, 6, 9), (3, 5), {"combine": "cumulative"}),
    ((2, 35, 19, 36), (3, 7), {"stride": 2}),
    ((2, 3, 9, 9), (3, 3), {"dilations": (1, 2)}),
)


def main() -> None:
    count = 0
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

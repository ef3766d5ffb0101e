"""mldn_block's Triton kernels through the interpreter, against float64; a process of its own, as multi_dwconv2d's."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import NamedTuple

import torch
from torch import Tensor
from triton_interpreter_cases import bound, guarded, kernels_named, margins_hold, poisoned_allocations, rms

SMALL = {"bm": 32, "mid": 2, "bk": 2}


class Run(NamedTuple):
    """A row of the operator's table, how it is run, and its tiles where they are not those of a device."""

    case: str
    dtype: torch.dtype
    layout: str
    tiles: dict[str, int] = {}  # noqa: RUF012


RUNS: dict[str, Run] = {
    "two-paths-nchw": Run("two_paths", torch.float32, "nchw"),
    "two-paths-nhwc": Run("two_paths", torch.float32, "nhwc"),
    "small-tiles": Run("evaluation", torch.float32, "nhwc", SMALL),
    "rsdc-dropout-nchw": Run("rsdc", torch.float32, "nchw"),
    "one-path": Run("one_path", torch.float64, "nhwc"),
    "four-paths-half": Run("four_paths", torch.float16, "nchw"),
    "rotated": Run("rotated", torch.float32, "nhwc"),
    "evaluation-nchw": Run("evaluation", torch.float64, "nchw"),
    "evaluation-bfloat16": Run("evaluation", torch.bfloat16, "nhwc"),
    "empty-batch": Run("empty_batch", torch.float32, "nchw"),
}


class Seen(NamedTuple):
    error: float
    bound: float


def run(name: str, dtype: torch.dtype, layout: str, tiles: dict[str, int]) -> dict[str, object]:
    from lightkernels._core.spec import TensorMeta
    from lightkernels.ops.mldn_block import cases, reference, triton, triton_kernels, triton_launch
    from lightkernels.ops.mldn_block.op import prepare
    from lightkernels.ops.mldn_block.spec import Inputs, Spec

    (case,) = [c for c in cases.CASES if c.name == name]
    sample = case.build(7, dtype, layout).map(lambda t: t.requires_grad_())

    def between(t: Tensor | None) -> Tensor | None:
        if t is None or not t.is_floating_point():
            return t
        return guarded(tuple(t.shape), t.stride(), t.dtype, torch.nan)[0].copy_(t.detach())

    def made(t: Inputs, values: tuple[object, ...]) -> Spec:
        return Spec.of(Inputs(*(None if one is None else TensorMeta.of(one) for one in t)), *values)

    t, values = prepare(*sample.args, **sample.kwargs)
    t = Inputs(*(between(one) for one in t))
    spec = made(t, values)
    assert triton.why_not(spec) is None, triton.why_not(spec)
    wide = Inputs(*(one.double() if one is not None and one.is_floating_point() else one for one in t))
    exact = made(wide, values)
    made_tiles = triton_launch.Tiles.__init__

    def smaller(self: object, spec: Spec) -> None:
        made_tiles(self, spec)
        vars(self).update(tiles)

    triton_launch.Tiles.__init__ = smaller
    names = {triton_kernels: ("pointwise", "spatial", "finish", "spread")}
    with poisoned_allocations() as buffers, kernels_named(names) as seen:
        out = triton.fwd(spec, t)
        again = triton.fwd(spec, t) if tiles else out
        y = out.y if spec.batch_stats else triton.infer(spec, t)
    triton_launch.Tiles.__init__ = made_tiles
    truth, plain = reference.fwd(exact, wide), reference.fwd(spec, t)
    errors = {}
    for what, ours, right, other in zip(out._fields, out, truth, plain, strict=True):
        assert ours.shape == right.shape and ours.dtype == other.dtype, what
        if what == "y":
            assert ours.stride() == spec.y_stride
        limit = bound(dtype, right, other)
        if what.startswith("stats") and right.numel():  # of values that were rounded: means lose what their sums do
            limit = max(limit, 8 * bound(dtype, torch.ones(1), torch.ones(1)) * rms(right))
        if dtype is torch.float64:
            limit = 1e-13 * rms(right)
        errors[what] = Seen(rms(ours.double() - right), limit)
    grads = {}
    if not spec.empty and dtype is torch.float64:
        g = torch.randn(spec.y_shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
        g = g.new_empty_strided(spec.y_shape, spec.y_stride).copy_(g)
        own, due = triton.bwd(spec, g, t, out), reference.bwd(exact, g, wide, truth)
        for i, (a, b) in enumerate(zip(own, due, strict=True)):
            if b is not None:
                grads[f"gradient {i}"] = Seen(rms(a - b), 1e-11 * (1 + rms(b)))
    return {
        "errors": errors | grads,
        "kernels": sorted(seen),
        "margins": margins_hold(buffers),
        "same": all(torch.equal(a, b) for a, b in zip(out, again, strict=True)) and torch.equal(out.y, y),
        "statistics": spec.batch_stats,
    }


def main() -> None:
    torch.set_num_threads(1)
    for name in sys.argv[1:] or RUNS:
        start = time.perf_counter()
        try:
            result = run(*RUNS[name])
        except Exception as error:
            result = {"exception": f"{type(error).__name__}: {error}"}
        print(json.dumps({"case": name, "seconds": time.perf_counter() - start, **result}), flush=True)


if __name__ == "__main__":
    assert os.environ.get("TRITON_INTERPRET") == "1"
    main()

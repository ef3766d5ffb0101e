"""mldn_block's Triton kernels through the interpreter, against float64; a process of its own, as multi_dwconv2d's."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton_interpreter_cases import bound, guarded, kernels_named, margins_hold, poisoned_allocations, rms

SMALL = {"bm": 32, "mid": 2, "bk": 2}


COMMON = ("spatial_back", "norm_sums", "spatial_grad", "collect", "pointwise_back", "pointwise_grad")
BACKWARD = ("settle", *COMMON)
SECOND = ("reactivate_back", "reactivate_grad", "join", "recentre")


class Run(NamedTuple):
    """A row of the operator's table, how it is run, and its tiles where they are not those of a device."""

    case: str
    dtype: torch.dtype
    layout: str
    tiles: dict[str, int] = {}  # noqa: RUF012
    backward: bool = True
    condensed: bool = False


RUNS: dict[str, Run] = {
    "two-paths-nchw": Run("two_paths", torch.float32, "nchw"),
    "two-paths-nhwc": Run("two_paths", torch.float32, "nhwc", backward=False),
    "small-tiles": Run("evaluation", torch.float32, "nhwc", SMALL),
    "rsdc-dropout-nchw": Run("rsdc", torch.float32, "nchw"),
    "one-path": Run("one_path", torch.float64, "nhwc"),
    "four-paths-half": Run("four_paths", torch.float16, "nchw"),
    "rotated": Run("rotated", torch.float32, "nhwc", backward=False),
    "evaluation-nchw": Run("evaluation", torch.float64, "nchw", backward=False),
    "evaluation-bfloat16": Run("evaluation", torch.bfloat16, "nhwc"),
    "second-nchw": Run("second_drops", torch.float32, "nchw"),
    "second-turned": Run("second_turned", torch.float64, "nhwc"),
    "second-evaluation": Run("evaluation_second", torch.float16, "nhwc"),
    "condensed-nchw": Run("evaluation", torch.float32, "nchw", condensed=True),
    "condensed-second": Run("second_picked", torch.float32, "nhwc", condensed=True),
    "condensed-small-tiles": Run("evaluation", torch.float64, "nhwc", {"bm": 32, "bk": 16}, condensed=True),
    "empty-batch": Run("empty_batch", torch.float32, "nchw"),
}


class Seen(NamedTuple):
    error: float
    bound: float


def pick(t: Any, values: list[Any]) -> Any:
    """A call with running statistics condensed: two groups read every other channel of a path, drawn by chance."""
    random = torch.Generator().manual_seed(5)
    layers, paths, growth = values[:3]
    widths = [t.x.shape[1] // paths + i * growth // paths for i in range(layers)]

    def drawn() -> Tensor:
        halves = [torch.randperm(c, generator=random)[: c // 2].sort().values for c in widths for _ in range(2 * paths)]
        return torch.cat(halves)

    values[-3:-1] = (2, 2)
    t = t._replace(weight1=t.weight1[: len(t.weight1) // 2], index=drawn())
    if t.weight_sfr is None:
        return t
    reached = drawn()
    reached[1] = reached[0]  # both are added
    return t._replace(weight_sfr=t.weight_sfr[: len(t.weight_sfr) // 2], index_sfr=reached)


def run(
    name: str, dtype: torch.dtype, layout: str, tiles: dict[str, int], backward: bool, condensed: bool
) -> dict[str, object]:
    from lightkernels._core import triton_math
    from lightkernels._core.spec import TensorMeta
    from lightkernels.ops.mldn_block import (
        cases,
        composite,
        reference,
        triton,
        triton_back,
        triton_forms,
        triton_kernels,
        triton_launch,
        triton_second,
    )
    from lightkernels.ops.mldn_block.op import prepare
    from lightkernels.ops.mldn_block.spec import Inputs, Outputs, Spec

    second = (
        cases.case("second_turned", (2, 4, 3, 4), 2, 4, 4, version=2, pairing="rotate", bottleneck=1, recompute=True),
        cases.case("second_picked", (2, 8, 3, 4), 3, 2, 8, version=2, bottleneck=1, running=True),
        cases.case("second_drops", (2, 4, 5, 4), 2, 2, 4, version=2, kernel_size=5, sets=1, bias=True, dropout=0.25),
    )
    (case,) = [c for c in (*cases.CASES, *second) if c.name == name]
    sample = case.build(7, dtype, layout).map(lambda t: t.requires_grad_())

    def between(t: Tensor | None) -> Tensor | None:
        if t is None or not t.is_floating_point():
            return t
        return guarded(tuple(t.shape), t.stride(), t.dtype, torch.nan)[0].copy_(t.detach())

    def made(t: Inputs, values: tuple[object, ...]) -> Spec:
        return Spec.of(Inputs(*(None if one is None else TensorMeta.of(one) for one in t)), *values)

    t, values = prepare(*sample.args, **sample.kwargs)
    if condensed:
        values = list(values)
        t = pick(t, values)
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
    names = {triton_kernels: ("pointwise", "spatial", "finish", "spread"), triton_back: BACKWARD}
    names |= {triton_second: SECOND}
    names |= {triton_math: ("sum_parts",), triton_forms: ("reactivate", "condensed", "reach")}
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
        if what == "mid":  # of version 2 without what was lost to rounding
            made = spec.mid + (spec.kappa if spec.version == 2 else 0)
            first = spec.layers * spec.n * spec.paths * made * spec.h * spec.w
            ours, right, other = ours[:first], right[:first], other[:first]
        limit = bound(dtype, right, other)
        if what.startswith("stats") and right.numel():  # of values that were rounded: means lose what their sums do
            limit = max(limit, 8 * bound(dtype, torch.ones(1), torch.ones(1)) * rms(right))
        if dtype is torch.float64:
            limit = 1e-13 * rms(right)
        errors[what] = Seen(rms(ours.double() - right), limit)
    grads, same = {}, True
    backward = backward and not spec.empty and not spec.index_groups
    if backward:
        g = torch.randn(spec.y_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        g = guarded(spec.y_shape, spec.y_stride, dtype, torch.nan)[0].copy_(g)
        # What it is given is what the definition kept, so that errors of the forward do not add up.
        known = Outputs(*plain[:4], mid=plain.mid if spec.keep else out.mid)
        late = t if spec.needs_input else t._replace(x=None)
        with poisoned_allocations() as more, kernels_named(names) as own_kernels:
            own = triton.bwd(spec, g, late, known)
            twice = triton.bwd(spec, g, late, known) if tiles else own
        buffers += more
        seen |= own_kernels
        same = all(a is b or torch.equal(a, b) for a, b in zip(own, twice, strict=True))
        due, other = reference.bwd(exact, g.double(), wide, truth), reference.bwd(spec, g, t, plain)
        grouped = composite.bwd(spec, g, late, known)
        for what, a, b, c, d in zip(Inputs._fields, own, due, other, grouped, strict=False):
            assert (a is None) == (b is None), what
            if a is not None and b is not None:
                assert a.shape == b.shape and a.dtype == c.dtype, what
                assert what != "x" or a.stride() == spec.dense_x_stride
                # Gradients through norms of few pixels are ill-conditioned: one float32 computation may be lucky.
                limit = max(bound(dtype, b, c), bound(dtype, b, d))
                limit = 1e-12 * (1 + rms(b)) if dtype is torch.float64 else limit
                grads[f"gradient of {what}"] = Seen(rms(a.double() - b), limit)
    return {
        "errors": errors | grads,
        "kernels": sorted(seen),
        "margins": margins_hold(buffers),
        "same": same and all(torch.equal(a, b) for a, b in zip(out, again, strict=True)) and torch.equal(out.y, y),
        "backward": backward,
        "statistics": spec.batch_stats,
        "forms": ["reactivate"] * (spec.version == 2)
        + ["condensed"] * condensed
        + ["reach"] * bool(t.index_sfr is not None),
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

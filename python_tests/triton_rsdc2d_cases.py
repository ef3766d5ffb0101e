"""The Triton kernels of rsdc2d through the interpreter, against float64; a process of its own, as multi_dwconv2d's."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from typing import NamedTuple

import torch
from torch import Tensor
from triton_interpreter_cases import (
    bound,
    guarded,
    kernels_named,
    margins_hold,
    one_rounding,
    poisoned_allocations,
    rms,
)

Size = tuple[int, int, int, int]


class Case(NamedTuple):
    shape: Size = (2, 16, 5, 6)
    filters: int = 16
    kernel: int = 5
    taps: int = 9
    scope: str = "layer"
    groups: int = 1
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] | None = None
    dilation: tuple[int, int] = (1, 1)
    dtype: torch.dtype = torch.float32
    layout: str = "nhwc"
    bias: bool = False
    sliced: bool = False
    integers: bool = False
    wild: bool = False
    tile: dict[str, int] | None = None


BOTH = ("nchw", "nhwc")
HALF = torch.float16
CASES: dict[str, Case] = {
    **{f"dot-layer-{a}": Case(layout=a, bias=True) for a in BOTH},
    **{f"dot-group-{a}": Case((1, 34, 5, 4), 36, scope="group", groups=2, layout=a, bias=True) for a in BOTH},
    **{f"dot-stride-{a}": Case((1, 18, 7, 6), 17, stride=(2, 2), layout=a, taps=7) for a in BOTH},
    **{f"flat-{a}": Case((2, 3, 5, 7), 20, layout=a, bias=True) for a in BOTH},
    "flat-group-stride": Case((1, 24, 6, 5), 30, 3, 5, scope="group", groups=3, stride=(2, 1)),
    "dot-stride-group": Case((1, 32, 6, 7), 32, 7, 11, scope="group", groups=2, stride=(3, 2), padding=(2, 4)),
    "dot-dilated": Case((1, 16, 7, 6), 24, dilation=(2, 3), stride=(2, 1), dtype=HALF),
    "dot-blocks": Case((3, 40, 5, 5), 48, 3, 4, dtype=HALF, bias=True, tile={"bm": 64, "bn": 32, "bk": 32}),
    "dot-half": Case((2, 64, 4, 4), 64, 7, dtype=HALF),
    "dot-bfloat16": Case((1, 16, 4, 5), 16, dtype=torch.bfloat16, bias=True),
    "dot-float64": Case((1, 17, 4, 5), 16, dtype=torch.float64, bias=True),
    "dot-float64-integers": Case((1, 16, 4, 5), 18, dtype=torch.float64, integers=True, stride=(2, 2)),
    "dot-sliced": Case((2, 16, 5, 4), 16, sliced=True, dtype=HALF),
    "dot-no-padding": Case((1, 16, 6, 7), 16, 3, 9, padding=(0, 0)),
    "dot-one-tap": Case((1, 16, 3, 4), 16, 3, 1),
    "dot-one-pixel": Case((3, 16, 1, 1), 16, 3),
    "dot-beyond-the-image": Case((1, 16, 3, 2), 16, 7, dilation=(2, 2)),
    "dot-one-filter": Case((1, 32, 4, 5), 1),
    "dot-wild-taps": Case((1, 16, 5, 5), 16, wild=True),
    "dot-wild-taps-stride": Case((1, 16, 5, 5), 16, wild=True, stride=(2, 2)),
    "flat-wild-taps": Case((1, 4, 5, 5), 16, wild=True),
    **{f"direct-mldn-{a}": Case((2, 8, 5, 6), 2, scope="filter", groups=2, layout=a, bias=True) for a in BOTH},
    **{f"direct-depthwise-{a}": Case((2, 7, 5, 6), 7, 7, scope="filter", groups=7, layout=a) for a in BOTH},
    **{
        f"direct-filter-{a}": Case((1, 4, 4, 5), 6, scope="filter", groups=2, taps=5, stride=(2, 1), layout=a)
        for a in BOTH
    },
    "direct-group": Case((1, 8, 5, 6), 8, scope="group", groups=4, taps=11, dilation=(1, 2)),
    "direct-layer-stride": Case((2, 6, 7, 5), 9, 3, 4, groups=3, stride=(3, 2), layout="nchw"),
    "direct-float64": Case((1, 6, 4, 5), 3, scope="filter", groups=3, dtype=torch.float64, bias=True),
    "direct-float64-integers": Case((1, 4, 4, 5), 4, groups=2, dtype=torch.float64, integers=True, layout="nchw"),
    "direct-bfloat16": Case((1, 8, 4, 5), 2, scope="filter", groups=2, dtype=torch.bfloat16),
    "direct-sliced": Case((1, 4, 5, 4), 4, 3, 5, scope="filter", groups=2, sliced=True, layout="nchw"),
    "direct-wild-taps": Case((1, 6, 5, 4), 6, scope="filter", groups=3, wild=True),
    "empty-batch": Case((0, 16, 5, 6)),
}


def run(case: Case) -> dict[str, object]:
    from lightkernels._core.spec import TensorMeta, dense_stride
    from lightkernels._core.taps import draw
    from lightkernels.ops.rsdc2d import reference, triton, triton_config, triton_direct, triton_dot
    from lightkernels.ops.rsdc2d.op import OP

    random = torch.Generator().manual_seed(case.filters + sum(case.shape))

    def data(shape: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        inside, _ = guarded(shape, stride, case.dtype, torch.nan)
        if case.integers:
            return inside.copy_(torch.randint(-3, 4, shape, generator=random))
        return inside.copy_(torch.randn(shape, generator=random, dtype=torch.float64))

    n, c, h, w = case.shape
    whole = (2 * n, c + 3, h, w) if case.sliced else case.shape
    x = data(whole, dense_stride(whole, case.layout))[n * case.sliced :, 2 * case.sliced :][:, :c]
    shape = (case.filters, c // case.groups, case.taps)
    weight = data(shape, (shape[1] * shape[2], shape[2], 1))
    taps = draw({"layer": 1, "group": case.groups, "filter": case.filters}[case.scope], case.taps, case.kernel,
                generator=random)  # fmt: skip
    padding = case.padding or tuple(d * (case.kernel // 2) for d in case.dilation)
    args = (taps, case.filters, case.kernel, list(case.stride), list(padding), list(case.dilation), case.groups)
    spec = OP.spec_of(TensorMeta.of(x), weight, None, args)
    spec = dataclasses.replace(spec, has_bias=case.bias, cache={})
    b = data((case.filters,), (1,)) if case.bias else None
    wide = (n, case.filters + 2 * case.sliced, spec.ho, spec.wo)
    g = data(wide, dense_stride(wide, case.layout))[:, case.sliced :][:, : case.filters]
    assert triton.why_not(spec) is None, triton.why_not(spec)
    if case.tile:
        tile, heuristic = case.tile, triton_config._conv_tile
        triton_config._conv_tile = lambda s, kind: heuristic(s, kind)._replace(**tile)
    given, live = taps.clone(), weight
    if case.wild:  # what only compiled code lets through; such a tap counts for nothing
        given[:, 1::3] = torch.tensor([-1, case.kernel**2, 2**40])
        live = weight.index_fill(2, torch.arange(1, case.taps, 3), 0.0)

    kernels = {triton_dot: ("conv_dot", "grad_dot"), triton_direct: ("conv_direct", "grad_direct")}
    result: dict[str, object] = {}
    exact = dataclasses.replace(spec, dtype=torch.float64, cache={})
    for kind, inputs in {"fwd": (x, weight, b), "bwd_x": (g, weight), "bwd_w": (g, x)}.items():
        with poisoned_allocations() as made, kernels_named(kernels) as seen:
            y = getattr(triton, kind)(spec, *inputs, given)
            again = getattr(triton, kind)(spec, *inputs, given) if kind == "bwd_w" and case.taps == 9 else y
        inputs = tuple(live if t is weight else t for t in inputs)
        truth = getattr(reference, kind)(exact, *[None if t is None else t.double() for t in inputs], taps)
        if case.wild and kind == "bwd_w":
            truth[:, :, 1::3] = 0
        native = getattr(reference, kind)(spec, *inputs, taps)
        error = rms(y.double() - truth)
        limit = 0.0 if case.integers else min(bound(case.dtype, truth, native), one_rounding(case.dtype, truth))
        if case.dtype is torch.float64 and not case.integers:
            terms = getattr(reference, kind)(exact, *[None if t is None else t.abs() for t in inputs], taps)
            count = case.taps * shape[1] if kind == "fwd" else case.taps * case.filters // case.groups
            count = n * spec.ho * spec.wo if kind == "bwd_w" else count + 1
            error = float(((y - truth).abs() / terms.clamp_min(1e-300)).max())
            limit = 4 * 2.0**-53 * count**0.5
        expected = {"fwd": spec.y_stride, "bwd_x": spec.dense_x_stride}.get(kind, truth.stride())
        result[kind] = {
            "error": error,
            "bound": limit,
            "kernels": sorted(seen),
            "margins": margins_hold(made),
            "same": torch.equal(y, again),
            "layout": y.shape == truth.shape and y.dtype == case.dtype and (y.stride() == expected or not y.numel()),
        }
    return result


def nonfinite() -> dict[str, object]:
    """With exact_nonfinite an Inf reaches exactly the results whose taps meet it, in each pass and layout."""
    from lightkernels._core.spec import TensorMeta
    from lightkernels.ops.rsdc2d import reference, triton
    from lightkernels.ops.rsdc2d.op import OP

    bad = []
    taps = torch.tensor([[0, 5, 7]])
    for layout, stride in (("nchw", 1), ("nhwc", 2)):
        memory = torch.channels_last if layout == "nhwc" else torch.contiguous_format
        x = torch.ones(1, 2, 3, 3).contiguous(memory_format=memory)
        spec = OP.spec_of(TensorMeta.of(x), None, None, (taps, 3, 3, [stride] * 2, [1, 1], [1, 1], 1))
        spec = dataclasses.replace(spec, exact_nonfinite=True, cache={})
        ones = {"x": x, "g": torch.ones(spec.y_shape).contiguous(memory_format=memory), "w": torch.ones(3, 2, 3)}
        for kind, names in {"fwd": ("x", "w"), "bwd_x": ("g", "w"), "bwd_w": ("g", "x")}.items():
            for first in names:
                hot = torch.zeros_like(ones[first])
                hot[tuple(0 for _ in hot.shape)] = 1.0
                given = [torch.where(hot > 0, torch.inf, ones[k]) if k == first else ones[k] for k in names]
                given = [t.contiguous(memory_format=memory) if t.dim() == 4 else t for t in given]
                extra = (None, taps) if kind == "fwd" else (taps,)
                y = getattr(triton, kind)(spec, *given, *extra)
                marked = [hot if k == first else ones[k] for k in names]
                touched = getattr(reference, kind)(spec, *marked, *extra) > 0.5
                if not torch.equal(y.isinf(), touched) or y.isnan().any():
                    bad.append(f"{kind} {first} {layout}")
    return {"bad": bad}


def main() -> None:
    torch.set_num_threads(1)
    from lightkernels.ops.rsdc2d import triton_config

    heuristic = triton_config._conv_tile
    for name in sys.argv[1:] or [*CASES, "nonfinite"]:
        start = time.perf_counter()
        triton_config._conv_tile = heuristic
        try:
            result = nonfinite() if name == "nonfinite" else run(CASES[name])
        except Exception as error:
            result = {"exception": f"{type(error).__name__}: {error}"}
        print(json.dumps({"case": name, "seconds": time.perf_counter() - start, **result}), flush=True)


if __name__ == "__main__":
    assert os.environ.get("TRITON_INTERPRET") == "1"
    main()

"""The Triton kernels through the interpreter, against float64; run by test_triton_interpreter.py as its own process.

Triton reads TRITON_INTERPRET when a kernel is decorated, so the tests' process cannot do this. Every tensor that a
kernel sees lies between margins: NaN around what is read, a sentinel around what is written, which itself starts as
NaN.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

MARGIN = 64
SENTINEL = -77.0
EPS = {torch.float64: 2.0**-52, torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


class Case(NamedTuple):
    kernels: tuple[int, ...]
    shape: tuple[int, int, int, int] = (1, 2, 6, 5)
    dilations: tuple[int, ...] = ()
    stride: tuple[int, int] = (1, 1)
    combine: str = "concat"
    split: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    layout: str = "nchw"
    bias: bool = False
    sliced: bool = False
    table: bool = False
    integers: bool = False
    rows: int | None = None
    passes: tuple[str, ...] = ("fwd", "bwd_x", "bwd_w")


BOTH = ("nchw", "nhwc")
CASES: dict[str, Case] = {
    **{f"concat-{a}": Case((3, 5), (2, 3, 5, 7), layout=a, bias=True, rows=2) for a in BOTH},
    **{f"add-{a}": Case((1, 3, 5), (1, 2, 5, 5), combine="add", layout=a, bias=True, rows=2) for a in BOTH},
    **{f"cumulative-{a}": Case((3, 1, 3), combine="cumulative", layout=a, bias=True) for a in BOTH},
    **{f"split-{a}": Case((3, 1, 3), (1, 6, 4, 5), split=(3, 1, 2), layout=a, bias=True, rows=2) for a in BOTH},
    **{f"stride2-{a}": Case((3, 5), (1, 2, 5, 7), stride=(2, 2), layout=a) for a in BOTH},
    **{f"stride-add-{a}": Case((1, 3), (1, 2, 5, 6), stride=(2, 3), combine="add", layout=a) for a in BOTH},
    **{f"stride-cumulative-{a}": Case((3, 3), stride=(3, 1), combine="cumulative", layout=a) for a in BOTH},
    **{f"dilated-{a}": Case((3, 3, 3), dilations=(1, 2, 3), layout=a, rows=2) for a in BOTH},
    **{f"dilated-add-{a}": Case((3, 3, 3), dilations=(1, 2, 3), combine="add", layout=a, rows=2) for a in BOTH},
    "dilated-stride": Case((3, 3), dilations=(2, 3), stride=(2, 2)),
    "kernel7": Case((7,), (1, 1, 5, 8), rows=1),
    "one-pixel-nchw": Case((3, 7), (2, 3, 1, 1), bias=True),
    "one-pixel-nhwc": Case((5,), (2, 3, 1, 1), layout="nhwc"),
    "larger-than-image-nchw": Case((7, 5), (1, 2, 3, 2), combine="add", rows=1),
    "larger-than-image-nhwc": Case((7,), (1, 2, 2, 3), layout="nhwc", rows=1),
    "narrow": Case((3,), (1, 1, 20, 1), bias=True),
    "wide": Case((3, 3), (1, 1, 2, 70), combine="add"),
    "odd-channels-nhwc": Case((3,), (1, 67, 2, 3), layout="nhwc", bias=True),
    "table-nchw": Case((3, 5), (1, 2, 3, 4), table=True, bias=True),
    "table-nhwc": Case((3,), (1, 2, 3, 4), table=True, layout="nhwc", bias=True),
    "table-add": Case((3, 5), (1, 2, 5, 4), stride=(2, 1), combine="add", table=True),
    "table-cumulative": Case((3, 3), stride=(2, 2), dilations=(1, 2), combine="cumulative", table=True, bias=True),
    "table-split": Case((3, 3), (1, 3, 3, 4), split=(1, 2), table=True),
    "sliced-nchw": Case((3, 1), (2, 3, 6, 5), sliced=True),
    "sliced-nhwc": Case((3,), (2, 3, 6, 5), sliced=True, layout="nhwc"),
    "sliced-split": Case((3, 1), (2, 3, 5, 5), split=(2, 1), sliced=True),
    "float64": Case((3, 5), (1, 2, 4, 5), dtype=torch.float64, combine="add", bias=True, rows=2),
    "float64-integers": Case((3, 3), dtype=torch.float64, combine="cumulative", integers=True, bias=True),
    "float64-integers-nhwc": Case((3,), dtype=torch.float64, stride=(2, 2), layout="nhwc", integers=True),
    "dot": Case((7,), (3, 2, 9, 10), dtype=torch.float16, bias=True),
    "dot-concat": Case((3, 5, 7), (1, 1, 9, 18), dtype=torch.float16, bias=True),
    "dot-add": Case((3, 5, 7), (2, 2, 7, 11), dtype=torch.float16, combine="add", bias=True),
    "dot-cumulative": Case((3, 5), (1, 1, 6, 11), dtype=torch.float16, combine="cumulative", bias=True),
    "dot-halo": Case((3, 5), (1, 1, 35, 69), dtype=torch.float16, bias=True),
    "dot-halo-add": Case((3, 7), (1, 1, 66, 40), dtype=torch.float16, combine="add"),
    "dot-stride2": Case((3, 7), (2, 1, 9, 35), stride=(2, 2), dtype=torch.float16, bias=True),
    "dot-stride2-add": Case((3, 5), (1, 1, 9, 70), stride=(2, 2), dtype=torch.float16, combine="add"),
    "dot-stride-cumulative": Case((3, 5), (1, 1, 7, 33), stride=(3, 2), dtype=torch.float16, combine="cumulative"),
    "dot-dilated": Case((3, 3, 5), (1, 1, 9, 37), dilations=(2, 3, 2), dtype=torch.float16, combine="add"),
    "dot-split": Case((3, 5), (1, 3, 6, 11), split=(1, 2), dtype=torch.float16, bias=True),
    "dot-sliced": Case((5, 3), (2, 2, 6, 11), sliced=True, dtype=torch.float16),
    "plane": Case((7,), (18, 2, 7, 7), dtype=torch.float16, bias=True),
    "plane-concat": Case((3, 5), (2, 2, 8, 8), dilations=(2, 1), dtype=torch.float16, bias=True),
    "plane-add": Case((3, 5, 7), (1, 3, 5, 9), dtype=torch.float16, combine="add", bias=True),
    "plane-stride-cumulative": Case((3, 5), (3, 1, 9, 7), stride=(3, 1), dtype=torch.float16, combine="cumulative"),
    "plane-split": Case((3, 5), (2, 3, 6, 6), split=(2, 1), sliced=True, dtype=torch.float16),
    "float16-nhwc": Case((3, 5), dtype=torch.float16, layout="nhwc", rows=1),
    "bfloat16": Case((3, 5), dtype=torch.bfloat16, bias=True, rows=2),
    "bfloat16-nhwc-add": Case((3, 1), dtype=torch.bfloat16, combine="add", layout="nhwc"),
    **{f"empty-batch-{a}": Case((3, 5), (0, 2, 6, 5), layout=a) for a in BOTH},
}


def guarded(
    shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype, margin: float
) -> tuple[Tensor, Tensor]:
    """A tensor of NaN (integers: -1) of these strides inside a buffer with margins, and the buffer."""
    extent = 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) if all(shape) else 0
    buffer = torch.full((extent + 2 * MARGIN,), margin, dtype=dtype)
    inside = torch.as_strided(buffer, shape, stride, MARGIN)
    return inside.fill_(torch.nan if dtype.is_floating_point else -1), buffer


@contextlib.contextmanager
def poisoned_allocations() -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Outputs and workspaces start as NaN inside a margin of sentinels."""
    made: list[tuple[Tensor, Tensor]] = []

    def new_empty_strided(self: Tensor, shape: tuple[int, ...], stride: tuple[int, ...], **_: object) -> Tensor:
        made.append(guarded(tuple(shape), tuple(stride), self.dtype, SENTINEL))
        return made[-1][0]

    def new_empty(self: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None, **other: object) -> Tensor:
        if other:  # the interpreter's own
            return saved[1](self, shape, dtype=dtype, **other)  # type: ignore[arg-type]
        stride = [1]
        for n in reversed(shape[1:]):
            stride.insert(0, stride[0] * n)
        made.append(guarded(tuple(shape), tuple(stride), dtype or self.dtype, SENTINEL))
        return made[-1][0]

    saved = Tensor.new_empty_strided, Tensor.new_empty
    Tensor.new_empty_strided, Tensor.new_empty = new_empty_strided, new_empty  # type: ignore[method-assign,assignment]
    try:
        yield made
    finally:
        Tensor.new_empty_strided, Tensor.new_empty = saved  # type: ignore[method-assign]


def margins_hold(made: list[tuple[Tensor, Tensor]]) -> bool:
    for inside, buffer in made:
        written = torch.zeros(buffer.shape, dtype=torch.bool)
        written.as_strided(inside.shape, inside.stride(), MARGIN).fill_(True)
        if not bool((buffer[~written] == SENTINEL).all()):
            return False
    return True


def bound(dtype: torch.dtype, truth: Tensor, reference: Tensor) -> float:
    """Twice the reference's RMS error and one ulp; one more ulp for bf16, to which the interpreter truncates."""
    ulps = 2 if dtype is torch.bfloat16 else 1
    return 2 * rms(reference.double() - truth) + ulps * EPS[dtype] * rms(truth)


def one_rounding(dtype: torch.dtype, truth: Tensor) -> float:
    """What rounding the truth once costs, and a quarter: sums of 16-bit inputs in float32 lose no more."""
    return 1.25 * rms(truth.to(dtype).double() - truth) if dtype is torch.float16 else math.inf


@contextlib.contextmanager
def kernels_named(names: dict[ModuleType, tuple[str, ...]]) -> Iterator[set[str]]:
    """Which of these kernels, by the modules that launches find them in, are launched inside."""
    seen: set[str] = set()

    class Noted:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            seen.add(self.kernel.__name__)
            return self.kernel[grid]

    saved = [(module, name, getattr(module, name)) for module, found in names.items() for name in found]
    for module, name, kernel in saved:
        setattr(module, name, Noted(kernel))
    try:
        yield seen
    finally:
        for module, name, kernel in saved:
            setattr(module, name, kernel)


def rms(t: Tensor) -> float:
    return float(t.square().mean().sqrt()) if t.numel() else 0.0


def run(case: Case) -> dict[str, object]:
    from lightkernels._core.spec import TensorMeta, dense_stride
    from lightkernels.ops.multi_dwconv2d import reference, triton, triton_dot, triton_grad, triton_kernels, triton_plane
    from lightkernels.ops.multi_dwconv2d import triton_config as config
    from lightkernels.ops.multi_dwconv2d.op import OP

    random = torch.Generator().manual_seed(len(case.kernels) + sum(case.shape))

    def data(shape: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        inside, _ = guarded(shape, stride, case.dtype, torch.nan)
        if case.integers:
            return inside.copy_(torch.randint(-3, 4, shape, generator=random))
        return inside.copy_(torch.randn(shape, generator=random, dtype=torch.float64))

    n, c, h, w = case.shape
    whole = (2 * n, c + 3, h, w) if case.sliced else case.shape
    channels = list(case.split) or [c] * len(case.kernels)
    dilations = list(case.dilations) or [1] * len(case.kernels)
    x = data(whole, dense_stride(whole, case.layout))[n * case.sliced :, 2 * case.sliced :][:, :c]
    size = sum(m * k * k for m, k in zip(channels, case.kernels, strict=True))
    packed = data((size,), (1,))
    args = (list(case.kernels), channels, list(case.stride), dilations, case.combine, bool(case.split))
    spec = OP.spec_of(TensorMeta.of(x), packed, None, args)
    b = data((spec.c_out,), (1,)) if case.bias else None
    spec = dataclasses.replace(spec, has_bias=case.bias, cache={})
    assert spec.layout == case.layout or case.shape[2:] == (1, 1) or 0 in case.shape, spec.layout
    wide = (*spec.y_shape[:1], spec.c_out + 2 * case.sliced, *spec.y_shape[2:])
    g = data(wide, dense_stride(wide, case.layout))[:, case.sliced :][:, : spec.c_out]
    assert triton.why_not(spec) is None, triton.why_not(spec)
    if case.table:
        config.UNROLL_TAPS = config.GRAD_TAPS = config.UNROLL_USES = 1
    if case.rows is not None:
        rows, heuristic = case.rows, config._heuristic
        config._heuristic = lambda s, kind: heuristic(s, kind)._replace(**{} if kind == "bwd_w" else {"th": rows})

    kernels = {
        triton_kernels: ("conv_taps", "conv_table"),
        triton_grad: ("grad_taps", "grad_table"),
        triton_dot: ("conv_rows", "grad_rows"),
        triton_plane: ("conv_plane",),
    }
    result: dict[str, object] = {}
    exact = dataclasses.replace(spec, dtype=torch.float64, cache={})
    for kind, inputs in {"fwd": (x, packed, b), "bwd_x": (g, packed), "bwd_w": (g, x)}.items():
        if kind not in case.passes:
            continue
        with poisoned_allocations() as made, kernels_named(kernels) as seen:
            y = getattr(triton, kind)(spec, *inputs)
            repeat = kind == "bwd_w" and case.combine == "add"
            again = getattr(triton, kind)(spec, *inputs) if repeat else y
        truth = getattr(reference, kind)(exact, *[None if t is None else t.double() for t in inputs])
        native = getattr(reference, kind)(spec, *inputs)
        error = rms(y.double() - truth)
        limit = 0.0 if case.integers else min(bound(case.dtype, truth, native), one_rounding(case.dtype, truth))
        if case.dtype is torch.float64 and not case.integers:
            terms = getattr(reference, kind)(exact, *[None if t is None else t.abs() for t in inputs])
            count = max(case.kernels) ** 2 * len(case.kernels) * (n * spec.ho * spec.wo if kind == "bwd_w" else 1)
            error = float(((y - truth).abs() / terms.clamp_min(1e-300)).max())
            limit = 4 * 2.0**-53 * count**0.5
        expected = truth.stride() if kind != "bwd_w" else (1,)
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
    from lightkernels.ops.multi_dwconv2d import reference, triton
    from lightkernels.ops.multi_dwconv2d import triton_config as config
    from lightkernels.ops.multi_dwconv2d.op import OP

    bad = []
    for layout, table in (("nchw", False), ("nhwc", False), ("nchw", True)):
        config.UNROLL_TAPS, config.GRAD_TAPS = (1, 1) if table else (128, 96)
        memory = torch.channels_last if layout == "nhwc" else torch.contiguous_format
        shape, size = (1, 2, 2, 3), 2 * 9
        x = torch.zeros(shape).contiguous(memory_format=memory)
        spec = OP.spec_of(TensorMeta.of(x), None, None, ([3], [2], [1, 1], [1], "concat", False))
        spec = dataclasses.replace(spec, exact_nonfinite=True, cache={})
        ones = {"x": torch.ones(shape), "g": torch.ones(spec.y_shape), "w": torch.ones(size)}
        ones = {k: t.contiguous(memory_format=memory) if t.dim() == 4 else t for k, t in ones.items()}
        for kind, first, second in (
            ("fwd", "x", "w"), ("fwd", "w", "x"), ("bwd_x", "g", "w"), ("bwd_x", "w", "g"),
            ("bwd_w", "g", "x"), ("bwd_w", "x", "g"),
        ):  # fmt: skip
            for place in (0, -1):
                hot = torch.zeros_like(ones[first])
                hot[(*[place] * (hot.dim() - 1), place)] = 1.0
                names = {"fwd": ("x", "w"), "bwd_x": ("g", "w"), "bwd_w": ("g", "x")}[kind]
                given = {first: torch.where(hot > 0, torch.inf, ones[first]), second: ones[second]}
                if ones[first].dim() == 4:
                    given[first] = given[first].contiguous(memory_format=memory)
                extra = (None,) if kind == "fwd" else ()
                y = getattr(triton, kind)(spec, *[given[k] for k in names], *extra)
                marked = [hot if k == first else ones[k] for k in names]
                touched = getattr(reference, kind)(spec, *marked, *extra) > 0.5
                if not torch.equal(y.isinf(), touched) or y.isnan().any():
                    bad.append(f"{kind} {first}[{place}] {layout} table={table}")
    return {"bad": bad}


def main() -> None:
    names = sys.argv[1:] or [*CASES, "nonfinite"]
    torch.set_num_threads(1)
    from lightkernels.ops.multi_dwconv2d import triton_config as config

    saved = {k: getattr(config, k) for k in ("UNROLL_TAPS", "UNROLL_USES", "GRAD_TAPS", "_heuristic")}
    for name in names:
        start = time.perf_counter()
        for key, value in saved.items():
            setattr(config, key, value)
        try:
            result = nonfinite() if name == "nonfinite" else run(CASES[name])
        except Exception as error:
            result = {"exception": f"{type(error).__name__}: {error}"}
        print(json.dumps({"case": name, "seconds": time.perf_counter() - start, **result}), flush=True)


if __name__ == "__main__":
    assert os.environ.get("TRITON_INTERPRET") == "1"
    main()

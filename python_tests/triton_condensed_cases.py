"""condensed_conv2d's Triton kernels through the interpreter, against float64; a process of its own."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from typing import NamedTuple

import torch
from torch import Tensor
from triton_interpreter_cases import bound, guarded, kernels_named, margins_hold, poisoned_allocations, rms

Size = tuple[int, int, int, int]
SMALL = {"bm": 32, "each": 16, "picked": 16, "bk": 16, "run": 16}


class Run(NamedTuple):
    """Repeated: channels are picked more than once, by a group too. Sliced: x is a part of a larger tensor."""

    dtype: torch.dtype = torch.float32
    layout: str = "nchw"
    shape: Size = (2, 7, 5, 6)
    filters: int = 12
    groups: int = 4
    picked: int = 3
    activation: str = "relu"
    repeated: bool = False
    sliced: bool = False
    wild: bool = False
    tiles: dict[str, int] = {}  # noqa: RUF012


RUNS: dict[str, Run] = {
    "nchw": Run(),
    "nhwc": Run(layout="nhwc", repeated=True),
    "small-tiles": Run(shape=(2, 20, 5, 9), filters=34, groups=2, picked=18, tiles=SMALL, repeated=True),
    "hardswish-nhwc": Run(layout="nhwc", activation="hardswish", tiles=SMALL),
    "sliced-nchw": Run(torch.float16, sliced=True),
    "sliced-nhwc": Run(torch.bfloat16, "nhwc", sliced=True),
    "float64": Run(torch.float64, "nhwc", filters=3, groups=1, activation="hardswish", repeated=True),
    "bad-index": Run(wild=True),
    "one-pixel": Run(torch.float64, shape=(3, 6, 1, 1), filters=10, groups=2, sliced=True),
    "empty": Run(shape=(0, 4, 3, 5)),
}


class Seen(NamedTuple):
    error: float
    bound: float


def run(case: Run) -> dict[str, object]:
    from lightkernels._core import triton_math
    from lightkernels._core.spec import TensorMeta, dense_stride
    from lightkernels.ops.condensed_conv2d import reference, triton, triton_kernels, triton_launch
    from lightkernels.ops.condensed_conv2d.spec import Inputs, Spec

    random = torch.Generator().manual_seed(case.filters + sum(case.shape))

    def data(shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        inside, _ = guarded(shape, stride, dtype, torch.nan)
        return inside.copy_(torch.randn(shape, generator=random, dtype=torch.float64))

    n, c, h, w = case.shape
    whole = (2 * n, c + 3, h + 1, w + 2) if case.sliced else case.shape
    x = data(whole, dense_stride(whole, case.layout), case.dtype)
    x = x[n * case.sliced :, 2 * case.sliced :, :h, case.sliced :][:, :c, :, :w]
    wide = torch.float64 if case.dtype is torch.float64 else torch.float32
    rows = [torch.randperm(c, generator=random)[: case.picked].sort().values for _ in range(case.groups)]
    index = torch.stack(rows)
    if case.repeated:
        index[0, -2:] = index[-1, 0]
    total = case.groups * case.picked
    weight = data((case.filters, case.picked), (case.picked, 1), case.dtype)
    t = Inputs(x, weight, data((total,), (1,), wide), data((total,), (1,), wide), index)
    spec = Spec.of(Inputs(*(TensorMeta.of(one) for one in t)), case.activation)
    assert spec.layout == case.layout or case.shape[2:] == (1, 1) or 0 in case.shape, spec.layout
    assert triton.why_not(spec) is None, triton.why_not(spec)
    exact = dataclasses.replace(spec, dtype=torch.float64, cache={})
    g = data(spec.y_shape, spec.y_stride, case.dtype)
    given = t
    if case.wild:  # what only compiled code lets through: such a channel counts for nothing
        bad = index.clone()
        bad[1, 1:] = torch.tensor([-1, 2**40])
        given = t._replace(index=bad)
        x[:, index[1, 1:]] = 0

    initial = triton_launch.Tiles.__init__

    def smaller(self: object, spec: Spec) -> None:
        initial(self, spec)
        vars(self).update(case.tiles)

    triton_launch.Tiles.__init__ = smaller
    names = {triton_kernels: ("forward", "grad_picked", "grad_weight", "collect"), triton_math: ("sum_parts",)}
    with poisoned_allocations() as buffers, kernels_named(names) as seen:
        y = triton.fwd(spec, given).y
        grads = () if case.wild else triton.bwd(spec, g, given, triton.Outputs(y))
        again = triton.bwd(spec, g, given, triton.Outputs(y)) if case.tiles else grads
        if case.wild:
            triton.bwd(spec, g, given, triton.Outputs(y))  # stays inside
    triton_launch.Tiles.__init__ = initial
    up = Inputs(*(one.double() if one.is_floating_point() else one for one in t))
    truth, plain = reference.fwd(exact, up).y, reference.fwd(spec, t).y
    ours, due, native = [y], [truth], [plain]
    if case.wild:  # relu of the shift, times the weight, stays: nothing is read for it
        pass
    else:
        ours += grads
        due += reference.bwd(exact, g.double(), up, triton.Outputs(truth))
        native += reference.bwd(spec, g, t, triton.Outputs(plain))
    errors = {}
    for name, a, b, other in zip(("y", "x", "weight", "scale", "shift"), ours, due, native, strict=False):
        assert a.shape == b.shape and a.dtype == other.dtype, name
        limit = 1e-13 * (1 + rms(b)) if case.dtype is torch.float64 else bound(case.dtype, b, other)
        errors[name] = Seen(rms(a.double() - b), limit)
    if not spec.empty and case.shape[2:] != (1, 1):
        assert y.stride() == spec.y_stride and (case.wild or grads[0].stride() == spec.dense_x_stride)
    return {
        "errors": errors,
        "kernels": sorted(seen),
        "margins": margins_hold(buffers),
        "same": all(torch.equal(a, b) for a, b in zip(grads, again, strict=True)),
    }


def main() -> None:
    torch.set_num_threads(1)
    for name in sys.argv[1:] or RUNS:
        start = time.perf_counter()
        try:
            result = run(RUNS[name])
        except Exception as error:
            result = {"exception": f"{type(error).__name__}: {error}"}
        print(json.dumps({"case": name, "seconds": time.perf_counter() - start, **result}), flush=True)


if __name__ == "__main__":
    assert os.environ.get("TRITON_INTERPRET") == "1"
    main()

"""Memory: slices and other views in place, guards on both sides of what is written, poison, odd gradients."""

import torch

from checks.parity import Judge, Values, evaluate, forward_shape, judge, upstream
from checks.target import BOTH, Target, Theme
from lightkernels.testing import (
    Case,
    assert_accurate,
    assert_same_bits,
    embed,
    guarded,
    poisoned,
    same_bits,
    views,
)

THEME = Theme()


def _close(actual: Values, expected: Values, what: str) -> None:
    """The same sums in another order at most."""
    for (name, a), (_, e) in zip(actual.named(), expected.named(), strict=True):
        assert_accurate(a, e.double(), e, f"{what}, {name}", ulps=4)


@THEME.kind(tag="core", layouts=("nchw",), dtypes=(torch.float32, torch.float64, torch.bfloat16), fused=99)
def input_views(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """Slices, transposes, steps, expanded batches: as a dense copy of the same values gives."""
    sample = target.build(case, dtype, layout, seed)
    x, *rest = sample.tensors()
    judges: dict[bool, Judge] = {}  # of x's values, and of the first image's
    for name, view in views(x):
        if (same := torch.equal(view, x)) not in judges:
            dense = sample.replace([view.clone(memory_format=torch.contiguous_format), *rest])
            judges[same] = Judge(target, dense, upstream(forward_shape(target, dense), seed))
        g = judges[same].g
        before = view.clone()
        actual = evaluate(target, sample.replace([view, *rest]), g)
        assert_same_bits(view, before, f"{name}: the input after the call")
        try:
            judges[same].check(actual)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


@THEME.kind(tag="core", layouts=BOTH)
def channel_blocks_of_one_tensor(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """A block of a concatenated map, in its own layout, is read in place and leaves its neighbours alone."""
    sample = target.build(case, dtype, layout, seed)
    x, *rest = sample.tensors()
    wide = torch.cat([x, x + 1, x + 2], 1).to(
        memory_format=torch.channels_last if layout == "nhwc" else torch.contiguous_format
    )
    kept = wide.clone()
    c = x.shape[1]
    for i in range(3):
        block = wide[:, i * c : (i + 1) * c]
        g = upstream(forward_shape(target, sample), seed)
        _close(
            evaluate(target, sample.replace([block, *rest]), g),
            evaluate(target, sample.replace([x + i, *rest]), g),
            f"block {i}",
        )
    assert_same_bits(wide, kept, "the whole tensor after the calls")


@THEME.kind(tag="core", layouts=BOTH, dtypes=(torch.float32, torch.bfloat16), fused=99)
def weight_views(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """Weights and bias that are strided, or inside one parameter buffer."""
    sample = target.build(case, dtype, layout, seed)
    x, *rest = sample.tensors()
    g = upstream(forward_shape(target, sample), seed)
    expected = evaluate(target, sample, g)
    strided = [torch.stack([t, t + 1], -1)[..., 0] for t in rest]
    buffer = torch.cat([torch.full((3,), torch.nan, dtype=dtype), *(t.flatten() for t in rest)])
    parts = [p.view(t.shape) for p, t in zip(buffer[3:].split([t.numel() for t in rest]), rest, strict=True)]
    for what, tensors in (("strided", strided), ("one buffer", parts)):
        _close(evaluate(target, sample.replace([x, *tensors]), g), expected, what)


@THEME.kind(tag="core", layouts=BOTH, dtypes=(torch.float32, torch.bfloat16), fused=99)
def upstream_views(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """A gradient that is expanded, sliced, of the other layout, or steps through memory."""
    if not target.op.bilinear and dtype is torch.bfloat16:
        return  # such gradients cancel in a norm's backward, down to the rounding of the norm's input
    sample = target.build(case, dtype, layout, seed)
    y = forward_shape(target, sample)
    g = upstream(y, seed)
    ones = torch.ones((), dtype=dtype, device=y.device).expand(y.shape)
    rows = g[:, :1, :1, :].expand(y.shape)
    given = [("one expanded number", ones), ("expanded rows", rows)]
    given += [(name, view) for name, view in views(g)]
    judged = Judge(target, sample, g)
    for name, view in given:
        before = view.clone()
        try:
            actual = evaluate(target, sample, view)
            if view is ones and not target.op.bilinear:  # it cancels in a norm's backward, down to rounding
                dense = evaluate(target, sample, torch.ones_like(y))
                for (what, a), (_, e) in zip(actual.named(), dense.named(), strict=True):
                    assert_same_bits(a, e, what)
            elif torch.equal(view, g):
                judged.check(actual)
            else:
                judge(target, sample, actual, view)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
        assert_same_bits(view, before, f"{name}: the gradient after the call")


@THEME.kind(layouts=BOTH, dtypes=(torch.float32, torch.bfloat16), native=True, fused=99)
def guards(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """Inputs and outputs slide through storages of sentinels: same bits, and no sentinel written."""
    sample = target.build(case, dtype, layout, seed)
    g = upstream(forward_shape(target, sample), seed)
    expected = evaluate(target, sample, g)
    for offset in (0, 1, 2, 7):
        held = [embed(t, offset) for t in [*sample.tensors(), g]]
        with guarded(offset):
            actual = evaluate(target, sample.replace([h.tensor for h in held[:-1]]), held[-1].tensor)
        for i, one in enumerate(held):
            one.check(f"input {i}")
        for (what, a), (_, e) in zip(actual.named(), expected.named(), strict=True):
            if not same_bits(a, e):
                raise AssertionError(f"{what}: another result at offset {offset}")


@THEME.kind(layouts=BOTH, dtypes=(torch.float32,), native=True, fused=99)
def poison(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """Nothing is left as the allocator gave it: results are finite where memory starts as NaN."""
    sample = target.build(case, dtype, layout, seed)
    with poisoned():
        g = upstream(forward_shape(target, sample), seed)
        actual = evaluate(target, sample, g)
        with torch.no_grad():
            actual = Values(target(sample), actual.gradients)
    for what, t in actual.named():
        if not bool(t.isfinite().all()):
            raise AssertionError(f"{what}: {int((~t.isfinite()).sum())} elements were never written")


@THEME.kind(tag="core", layouts=BOTH, fused=99)
def parameter_strides(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """Gradients have their tensors' strides, so that a bucketed all-reduce copies nothing and warns of nothing."""
    sample = target.build(case, dtype, layout, seed)
    leaves = [t.requires_grad_() for t in sample.tensors()]
    target(sample.replace(leaves)).sum().backward()
    for i, t in enumerate(leaves):
        if t.grad is None or t.grad.stride() != t.stride() or t.grad.shape != t.shape:
            raise AssertionError(f"gradient {i} has not its tensor's strides")
        t.grad.zero_().add_(1)  # accumulation and bucket views write into it


@THEME.kind(tag="core", layouts=BOTH, fused=99)
def outputs_are_fresh(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """Two calls share no memory, with each other or with an input; a result may be written to."""
    first, second = (target.build(case, dtype, layout, seed + i) for i in range(2))
    with torch.no_grad():
        y = target(first)
        kept = y.clone()
        z = target(second)
        assert_same_bits(y, kept, "the first output after a second call")
        z.fill_(7)
        y.mul_(2)
        assert_same_bits(target(first), kept, "the output after its predecessor was written to")
    g = upstream(kept, seed)
    results = [evaluate(target, s, g) for s in (first, second)]
    judge(target, second, results[1], g)
    again = evaluate(target, first, g)
    for (what, a), (_, e) in zip(results[0].named(), again.named(), strict=True):
        assert_same_bits(a, e, what)

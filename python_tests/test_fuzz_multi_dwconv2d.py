"""Any legal call of multi_dwconv2d, drawn at random: outputs and all gradients against float64 truth."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from checks.parity import Values, evaluate, judge, upstream
from checks.target import ALL, BORROWED, BOTH, Target
from lightkernels.ops.multi_dwconv2d.cases import case
from lightkernels.testing import Case, Sample, assert_accurate, views

PACKAGE = "lightkernels.ops.multi_dwconv2d"
BACKENDS = ("cpu", "torch")
ENOUGH = 16
SETTINGS = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@st.composite
def calls(draw) -> Case:
    """Branches, values and sizes that the operator accepts; images small, often smaller than a kernel or a stride."""
    kernels = draw(st.lists(st.sampled_from((1, 3, 5, 7, 9)), min_size=1, max_size=4))
    combine = draw(st.sampled_from(("concat", "add", "cumulative")))
    split = combine == "concat" and draw(st.booleans())
    dilation = st.integers(1, 3)
    dilations = draw(st.one_of(dilation, st.tuples(*(dilation for _ in kernels))))
    stride = draw(st.one_of(st.integers(1, 3), st.tuples(st.integers(1, 4), st.integers(1, 4))))
    n, h, w = draw(st.integers(0, 3)), draw(st.integers(1, 12)), draw(st.integers(1, 20))
    c = draw(st.sampled_from((1, 2, 3, 4, 5, 8, 15, 16, 17, 33)))
    c = max(c, len(kernels)) if split else c
    bias = draw(st.booleans())
    return case(
        "fuzz", (n, c, h, w), kernels, bias=bias, stride=stride, dilations=dilations, combine=combine, split=split
    )


def through_a_view(sample: Sample, index: int) -> Sample:
    """The same values of x in another storage; the batch of an expanded x is its first image."""
    x, *rest = sample.args
    forms = list(views(x))
    _, view = forms[index % len(forms)]
    return Sample((view, *rest), sample.kwargs)


def right(target: Target, sample: Sample, actual: Values, g: Tensor) -> None:
    """The numerics rule; elements by themselves where they are too few for an RMS, and the baseline may be lucky."""
    if g.dtype is torch.float64:
        judge(target, sample, actual, g)
        return
    wide, ulps = sample.map(Tensor.double), 4 if target.backend in BORROWED else 1
    truth, same = evaluate(target.truth, wide, g.double()), evaluate(target.truth, sample, g)
    terms = evaluate(target.truth, wide.map(Tensor.abs), g.double().abs())
    products = evaluate(target.truth, wide.map(torch.ones_like), torch.ones_like(g.double()))
    every = zip(*(v.named() for v in (actual, truth, same, terms, products)), strict=True)
    for (what, a), (_, t), (_, b), (_, s), (_, k) in every:
        if a.numel() >= ENOUGH:
            assert_accurate(a, t, b, what, ulps)
        else:
            assert a.dtype is g.dtype and a.shape == t.shape
            info = torch.finfo(a.dtype)
            bound = 4 * 2.0**-24 * k.sqrt() * s + info.eps * (t.abs() + info.smallest_normal)
            assert bool(((a.double() - t).abs() <= bound).all()), f"{what}: {a} for {t}, bound {bound}"


@pytest.mark.parametrize("backend", BACKENDS)
@SETTINGS
@given(
    made=calls(),
    dtype=st.sampled_from(ALL),
    layout=st.sampled_from(BOTH),
    view=st.one_of(st.none(), st.integers(0, 15)),
    gradient_view=st.one_of(st.none(), st.integers(0, 14)),
    seed=st.integers(0, 2**16),
)
def test_any_call(backend, made, dtype, layout, view, gradient_view, seed):
    target = Target(PACKAGE, backend)
    sample = target.build(made, dtype, layout, seed)
    if view is not None:
        sample = through_a_view(sample, view)
    with torch.no_grad():
        g = upstream(target(sample), seed)
    read = g if gradient_view is None else list(views(g))[gradient_view][1]
    actual = evaluate(target, sample, read)
    right(target, sample, actual, g)

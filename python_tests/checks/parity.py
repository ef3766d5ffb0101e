"""Values: against float64 truth, against plain loops, exact on whole numbers, and by the adjoint identity."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from checks.target import ALL, BORROWED, BOTH, HALF, WIDE, Target, Theme
from lightkernels import exact_nonfinite
from lightkernels.testing import (
    Case,
    Sample,
    assert_accurate,
    assert_adjoint,
    assert_close64,
    assert_keeps_layout,
    assert_same_bits,
    embed,
    same_bits,
)

THEME = Theme()


@dataclass(frozen=True)
class Values:
    """An output and the gradient of every tensor."""

    output: Tensor
    gradients: tuple[Tensor, ...]

    def named(self) -> list[tuple[str, Tensor]]:
        return [("output", self.output), *((f"gradient {i}", t) for i, t in enumerate(self.gradients))]


def upstream(y: Tensor, seed: int, integers: bool = False) -> Tensor:
    """A gradient for ``y``, of its dtype and strides."""
    generator = torch.Generator().manual_seed(seed + 1)
    if integers:
        values = torch.randint(-15, 16, y.shape, generator=generator, dtype=torch.float64)
    else:
        values = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    return torch.zeros_like(y).copy_(values)


def evaluate(function, sample: Sample, g: Tensor) -> Values:
    sample = sample.requires_grad()
    y = function(sample)
    return Values(y.detach(), torch.autograd.grad(y, sample.tensors(), g))


def forward_shape(target: Target, sample: Sample) -> Tensor:
    """The output as the reference gives it, in the layout that the operator promises."""
    with torch.no_grad():
        y = target.truth(sample)
        return torch.empty_like(target(sample)).copy_(y)


class Judge:
    """The numerics rule for one sample and one upstream gradient; what it asks of the reference is computed once."""

    def __init__(self, target: Target, sample: Sample, g: Tensor) -> None:
        self.target, self.sample, self.g = target, sample, g

    def _truth(self, change: Callable[[Tensor], Tensor]) -> Values:
        return evaluate(self.target.truth, self.sample.map(change), change(self.g))

    @cached_property
    def wide(self) -> Values:
        return self._truth(Tensor.double)

    @cached_property
    def same(self) -> Values:
        return evaluate(self.target.truth, self.sample, self.g)

    @cached_property
    def sizes(self) -> tuple[Values, Values]:
        """Sums of the terms' sizes, and how many there are."""
        return self._truth(Tensor.abs), self._truth(torch.ones_like)

    @cached_property
    def rounded(self) -> list[Values]:
        """The truth, rounded at every step, three times."""
        draws, double, upper = [], self.sample.map(Tensor.double), self.g.double()
        for seed in range(3):
            with Rounding(self.g.dtype, seed):
                draws.append(evaluate(self.target.truth, double, upper))
        return draws

    @cached_property
    def nudged(self) -> list[Values]:
        return [evaluate(self.target.truth, self.sample.map(nudge), self.g) for _ in range(4)]

    def check(self, actual: Values) -> None:
        """The output and every gradient."""
        if not self.target.op.bilinear:
            judge_half(self, actual) if self.g.dtype in HALF else judge_chain(self, actual)
            return
        if self.g.dtype is torch.float64:
            named = (v.named() for v in (actual, self.wide, *self.sizes))
            for (what, a), (_, t), (_, s), (_, k) in zip(*named, strict=True):
                assert_close64(a, t, s, k, what)
            return
        # Which of its convolutions sums in the better order is PyTorch's affair.
        ulps = 4 if self.target.backend in BORROWED else 1
        for (what, a), (_, t), (_, b) in zip(*(v.named() for v in (actual, self.wide, self.same)), strict=True):
            assert_accurate(a, t, b, what, ulps)


def judge(target: Target, sample: Sample, actual: Values, g: Tensor) -> None:
    """The numerics rule, for the output and every gradient."""
    Judge(target, sample, g).check(actual)


def nudge(v: Tensor) -> Tensor:
    return v + v * torch.finfo(v.dtype).eps * (4 * torch.rand_like(v) - 2)


class Rounding(TorchDispatchMode):
    """Every result of torch's operators, gradients' included, is off by up to one rounding of ``dtype``."""

    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        super().__init__()
        self.eps, self.generator = torch.finfo(dtype).eps, torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if any(r.alias_info is not None for r in func._schema.returns):
            return out
        return tree_map_only(Tensor, self.rounded, out)

    def rounded(self, t: Tensor) -> Tensor:
        if not t.is_floating_point():
            return t
        return t * (1 + self.eps * (2 * torch.rand(t.shape, generator=self.generator, dtype=t.dtype) - 1))


def judge_chain(judge: Judge, actual: Values) -> None:
    """Of a chain of operations: rounding at one changes the next, and gradients may all but cancel. In float32 and
    float64 the truth tells how much, by rounding at every step; in 16 bit the reference."""
    dtype = judge.g.dtype
    for i, ((what, a), (_, t)) in enumerate(zip(actual.named(), judge.wide.named(), strict=True)):
        off = max((d.named()[i][1].detach() - t for d in judge.rounded), key=lambda d: float(d.square().sum()))
        if a.dtype is not dtype:
            raise AssertionError(f"{what}: {a.dtype} for {dtype}")
        # Twice the error of a baseline is allowed; sums of many terms are rounded more than once.
        assert_accurate(a.double(), t, t + 4 * off, what, round(torch.finfo(dtype).eps / torch.finfo(t.dtype).eps))


def judge_half(judge: Judge, actual: Values) -> None:
    named = (v.named() for v in (actual, judge.wide, judge.same))
    for i, ((what, a), (_, t), (_, b)) in enumerate(zip(*named, strict=True)):
        try:
            assert_accurate(a, t, b, what, 16)
        except AssertionError:
            # Gradients that all but cancel are as good as rounding lets them be, which the reference meets by luck:
            # what it makes of inputs that differ by a few roundings tells.
            others = [v.named()[i][1].detach() for v in judge.nudged]
            assert_accurate(a, t, max(others, key=lambda o, t=t: float((o - t).square().sum())), what, 16)


def layouts_kept(sample: Sample, actual: Values) -> None:
    assert_keeps_layout(sample.args[0], actual.output, "output")
    for i, (t, dt) in enumerate(zip(sample.tensors(), actual.gradients, strict=True)):
        differ = any(a != b and n > 1 for a, b, n in zip(dt.stride(), t.stride(), t.shape, strict=True))
        if differ and t.numel():
            raise AssertionError(f"gradient {i}: strides {dt.stride()} where its tensor has {t.stride()}")


@THEME.kind(dtypes=ALL, layouts=BOTH, fused=99)
def outputs_and_gradients(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """Against float64 truth, gradients by torch's autograd through the reference; layouts kept, inputs untouched."""
    if not target.op.bilinear and dtype is not torch.float64 and "tiny" in case.tags:
        return  # one activation that changes sides, or a norm that all but cancels, is a large part of so few values
    sample = target.build(case, dtype, layout, seed)
    g = upstream(forward_shape(target, sample), seed)
    before = [t.clone() for t in [*sample.tensors(), g]]
    actual = evaluate(target, sample, g)
    layouts_kept(sample, actual)
    judge(target, sample, actual, g)
    for kept, now in zip(before, [*sample.tensors(), g], strict=True):
        assert_same_bits(now, kept, "an input after the call")
    with torch.no_grad():
        assert_same_bits(target(sample), actual.output, "output without gradient")


def _exactly(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    sample = target.build(case, dtype, layout, seed, integers=True)
    with torch.no_grad():
        g = upstream(target(sample), seed, integers=True)
    wide = evaluate(target.truth, sample.map(Tensor.double), g.double())
    actual = evaluate(target, sample, g)
    for (what, a), (_, t) in zip(actual.named(), wide.named(), strict=True):
        assert_same_bits(a + 0, t.to(dtype) + 0, what)


@THEME.kind(dtypes=WIDE, layouts=BOTH)
def whole_numbers(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """Sums of whole numbers are exact."""
    _exactly(target, case, dtype, layout, seed)


@THEME.kind(dtypes=HALF, layouts=BOTH, native=True)
def rounded_once(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """In 16 bit what is stored is the exact sum of whole numbers, rounded once."""
    _exactly(target, case, dtype, layout, seed)


@THEME.kind(tag="bulk", layouts=BOTH)
def bulk_whole_numbers(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """At sizes of many tiles."""
    _exactly(target, case, dtype, layout, seed)


@THEME.kind(dtypes=(torch.float64,), only=("reference",))
def loops(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """The definition in plain Python loops."""
    oracle = getattr(target.cases, "oracle", None)
    if oracle is None:
        raise AssertionError(f"{target.name}: cases.py must have an oracle")
    sample = target.build(case, dtype, layout, seed, integers=True)
    y = target(sample)
    if y.numel() > 20_000:
        return
    assert_same_bits(y + 0, oracle(*sample.args, **sample.kwargs).to(dtype) + 0, "output")


def _adjoint(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    sample = target.build(case, dtype, layout, seed)
    if sample.args[-1] is not None:
        sample = Sample((*sample.args[:-1], None), sample.kwargs)
    with torch.no_grad():
        g = upstream(target(sample), seed)
        terms = target.truth(sample.map(lambda t: t.float().abs()))
        products = target.truth(sample.map(lambda t: torch.ones_like(t, dtype=torch.float32)))
    actual = evaluate(target, sample, g)
    x, *weights = sample.tensors()
    dx, *dws = actual.gradients
    assert_adjoint(actual.output, [dx], [x], g, terms, products)
    # Each branch by itself would need its own output: the weights together stand for one tensor.
    flat = [torch.cat([t.flatten() for t in ts]) for ts in (dws, weights)]
    assert_adjoint(actual.output, [flat[0]], [flat[1]], g, terms, products)


@THEME.kind(tag="bulk", layouts=BOTH)
def adjoint(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """<A x, g> = <x, A* g>, for x and for the weights, at sizes of many tiles."""
    _adjoint(target, case, dtype, layout, seed)


@THEME.kind(tag="bulk", layouts=BOTH, dtypes=(torch.float64, *HALF), native=True)
def adjoint_in_other_dtypes(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """The same in float64 and 16 bit."""
    _adjoint(target, case, dtype, layout, seed)


@THEME.kind(layouts=BOTH, native=True)
def nonfinite(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """With ``exact_nonfinite`` an Inf reaches exactly the outputs that have a tap on it."""
    sample = target.build(case, dtype, layout, seed)
    x, *rest = sample.tensors()
    if not x.numel():
        return
    hit = torch.zeros(x.numel(), dtype=dtype)
    hit[seed % x.numel()] = 1
    hit = torch.zeros_like(x).copy_(hit.view(x.shape))
    spoilt = sample.replace([torch.where(hit > 0, torch.inf, x), *rest])
    with torch.no_grad():
        reach = target.truth(sample.replace([hit, *(torch.ones_like(t) for t in rest)]))
        alone = target.truth(sample.replace([torch.zeros_like(hit), *(torch.ones_like(t) for t in rest)]))
        with exact_nonfinite():
            y = target(spoilt)
    if not torch.equal(~y.isfinite(), reach != alone):
        raise AssertionError("an Inf reached another set of outputs than its taps'")


@THEME.kind(layouts=BOTH, dtypes=(torch.float32, torch.bfloat16), native=True, fused=99)
def inputs_between_nans(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """Every tensor read lies between NaNs: a value read from outside shows."""
    sample = target.build(case, dtype, layout, seed)
    g = upstream(forward_shape(target, sample), seed)
    expected = evaluate(target, sample, g)
    for offset in (0, 1, 3):
        held = [embed(t, offset) for t in [*sample.tensors(), g]]
        for one in held:
            fill = torch.tensor([float("nan")], dtype=dtype).view(torch.uint8)
            for part in (one.store[: one.begin], one.store[one.end :]):
                part.view(-1, fill.numel()).copy_(fill)
        actual = evaluate(target, sample.replace([h.tensor for h in held[:-1]]), held[-1].tensor)
        for (what, a), (_, e) in zip(actual.named(), expected.named(), strict=True):
            if not same_bits(a, e):
                raise AssertionError(f"{what}: changes with what lies around the inputs (offset {offset})")

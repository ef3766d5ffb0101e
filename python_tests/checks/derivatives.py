"""Derivatives of every order and route, from numerical ones and from the reference's."""

import itertools

import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from checks.parity import evaluate, forward_shape, upstream
from checks.target import BOTH, Target, Theme
from lightkernels.testing import Case, assert_close64, assert_same_bits

THEME = Theme()
DOUBLE = (torch.float64,)


def close(actual: Tensor, expected: Tensor, what: str) -> None:
    """Equal but for the order of float64 sums, on the scale of the largest element."""
    scale = max(1.0, float(expected.detach().abs().max())) if expected.numel() else 1.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-11 * scale, msg=lambda text: f"{what}: {text}")


@THEME.kind(tag="tiny", dtypes=DOUBLE, layouts=BOTH, turns=True, fused=99)
def numerical_gradient(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """gradcheck, backward and forward mode, batched gradients too."""
    # Of an operator that is not bilinear, forward mode and batches go through the definition on every backend.
    slow = target.op.bilinear or target.backend == "reference"
    for more in (0, 1) if slow else (1,):
        sample = target.build(case, dtype, layout, seed + more).requires_grad()
        gradcheck(
            target.function(sample),
            sample.tensors(),
            check_forward_ad=True,
            check_batched_grad=more == 0,
            fast_mode=more == 1,
        )


@THEME.kind(tag="core", dtypes=DOUBLE, fused=99)
def batched_upstream(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """Several gradients in one backward, as vectorised Jacobians of torch.autograd ask for."""
    sample = target.build(case, dtype, layout, seed).requires_grad()
    y = target(sample)
    many = torch.stack([upstream(y, seed + i) for i in range(3)])
    found = torch.autograd.grad(y, sample.tensors(), many, is_grads_batched=True, retain_graph=True)
    for i in range(3):
        single = torch.autograd.grad(y, sample.tensors(), many[i], retain_graph=True)
        for j, (a, e) in enumerate(zip(found, single, strict=True)):
            close(a[i], e, f"gradient {j} of upstream {i}")


@THEME.kind(tag="core", dtypes=DOUBLE, fused=99)
def dual_upstream(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """A tangent that enters in the backward alone is not lost."""
    sample = target.build(case, dtype, layout, seed).requires_grad()
    y = target(sample)
    g, tangent = upstream(y, seed), upstream(y, seed + 1)
    with forward_ad.dual_level():
        grads = torch.autograd.grad(y, sample.tensors(), forward_ad.make_dual(g, tangent), retain_graph=True)
        found = [forward_ad.unpack_dual(t).tangent for t in grads]
    due = torch.autograd.grad(y, sample.tensors(), tangent)
    for i, (a, e) in enumerate(zip(found, due, strict=True)):
        if a is None:
            raise AssertionError(f"the tangent of gradient {i} is lost")
        close(a, e, f"tangent of gradient {i}")


@THEME.kind(tag="tiny", dtypes=DOUBLE, layouts=BOTH, turns=True, fused=2)
def numerical_second_order(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    if not target.op.bilinear and target.backend == "torch":
        return  # the definition's, as on "reference"
    sample = target.build(case, dtype, layout, seed).requires_grad()
    gradgradcheck(
        target.function(sample), sample.tensors(), check_fwd_over_rev=True, check_rev_over_rev=True, fast_mode=True
    )


@THEME.kind(tag="core", dtypes=DOUBLE, layouts=BOTH)
def second_and_third_order(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """Of a nonlinear function of the output, against torch's own derivatives of the reference."""
    sample = target.build(case, dtype, layout, seed).map(lambda t: t / 4)

    def orders(function) -> list[Tensor]:
        leaves = sample.requires_grad().tensors()
        value = function(*leaves).sin().mean()
        found: list[Tensor] = []
        for _ in range(3):
            grads = torch.autograd.grad(value, leaves, create_graph=True)
            found += [g.detach() / g.detach().abs().max() for g in grads]
            value = sum(g.square().sum() for g in grads)
        return found

    pairs = zip(orders(target.function(sample)), orders(target.truth_function(sample)), strict=True)
    for i, (a, e) in enumerate(pairs):
        close(a, e, f"gradient {i}")


@THEME.kind(tag="core", layouts=BOTH, fused=99)
def masks(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """Whatever subset requires gradients gets them, and nothing else does."""
    sample = target.build(case, dtype, layout, seed)
    g = upstream(forward_shape(target, sample), seed)
    expected = evaluate(target, sample, g)
    count = len(sample.tensors())
    chosen = [set(), *({i} for i in range(count)), set(range(1, count)), {0, count - 1}, {1, count - 1}]
    for wanted in chosen:
        leaves = [t.clone().requires_grad_(i in wanted) for i, t in enumerate(sample.tensors())]
        y = target(sample.replace(leaves))
        if y.requires_grad != bool(wanted):
            raise AssertionError(f"requires_grad is {y.requires_grad} with {sorted(wanted)} requiring gradients")
        if wanted:
            y.backward(g)
        for i, leaf in enumerate(leaves):
            if (leaf.grad is not None) != (i in wanted):
                raise AssertionError(f"gradient {i} {'missing' if i in wanted else 'made'} with {sorted(wanted)}")
            if leaf.grad is not None:
                assert_same_bits(leaf.grad, expected.gradients[i], f"gradient {i} with {sorted(wanted)}")


@THEME.kind(tag="core", dtypes=DOUBLE, layouts=BOTH, fused=99)
def dual_numbers(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """Forward mode: no tangent is lost, whichever inputs have one, gradient or not."""
    sample, tangent = (target.build(case, dtype, layout, seed + i) for i in range(2))

    def derivative(function, which: set[int], grad: bool) -> Tensor:
        with forward_ad.dual_level():
            duals = [
                forward_ad.make_dual(t.clone().requires_grad_(grad), d) if i in which else t
                for i, (t, d) in enumerate(zip(sample.tensors(), tangent.tensors(), strict=True))
            ]
            dual = forward_ad.unpack_dual(function(*duals)).tangent
            if dual is None:
                raise AssertionError(f"the tangent of inputs {sorted(which)} is lost")
            return dual.detach()

    count = len(sample.tensors())
    for which in [{i} for i in range(count)] + [set(range(count))]:
        for grad in (False, True):
            close(
                derivative(target.function(sample), which, grad),
                derivative(target.truth_function(sample), which, grad),
                f"tangent of {sorted(which)}",
            )


@THEME.kind(tag="core", dtypes=DOUBLE, fused=99)
def forward_over_reverse(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """Tangents through the backward: Hessian-vector products."""
    sample, tangent = (target.build(case, dtype, layout, seed + i) for i in range(2))

    def product(function) -> list[Tensor]:
        with forward_ad.dual_level():
            duals = [
                forward_ad.make_dual(t.clone().requires_grad_(), d)
                for t, d in zip(sample.tensors(), tangent.tensors(), strict=True)
            ]
            grads = torch.autograd.grad(function(*duals).sin().sum(), duals, create_graph=True)
            return [forward_ad.unpack_dual(t).tangent.detach() for t in grads]

    pairs = zip(product(target.function(sample)), product(target.truth_function(sample)), strict=True)
    for i, (a, e) in enumerate(pairs):
        close(a, e, f"Hessian-vector product {i}")


@THEME.kind(dtypes=DOUBLE, layouts=BOTH)
def linear_in_each(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """f(a + b) = f(a) + f(b) in x and in the weights, bias apart; additive in the bias."""
    one, two = (target.build(case, dtype, layout, seed + i) for i in range(2))
    a, b = one.tensors(), two.tensors()
    has_bias = one.args[-1] is not None
    ends = len(a) - has_bias
    with torch.no_grad():
        terms = target.truth(one.map(lambda t: t.abs() + 4))
        products = target.truth(one.map(torch.ones_like)) * 4
        for group in (range(1), range(1, ends)):
            mixed = [s + t if i in group else s for i, (s, t) in enumerate(zip(a, b, strict=True))]
            other = [t if i in group else s for i, (s, t) in enumerate(zip(a, b, strict=True))]
            rest = [torch.zeros_like(t) for t in other[ends:]]
            due = target(one) + target(one.replace([*other[:ends], *rest]))
            assert_close64(target(one.replace(mixed)), due, terms * 4, products, "sum")


@THEME.kind(tag="core", dtypes=DOUBLE)
def pairs_of_orders(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """Mixed second derivatives agree in either order of differentiation."""
    sample = target.build(case, dtype, layout, seed).requires_grad()
    leaves = sample.tensors()
    generator = torch.Generator().manual_seed(seed)
    directions = [torch.randn(t.shape, generator=generator, dtype=dtype) for t in leaves]

    def mixed(i: int, j: int) -> Tensor:
        value = target.function(sample)(*leaves).sin().sum()
        (first,) = torch.autograd.grad(value, leaves[i], create_graph=True)
        (second,) = torch.autograd.grad((first * directions[i]).sum(), leaves[j])
        return (second * directions[j]).sum()

    for i, j in itertools.combinations(range(len(leaves)), 2):
        close(mixed(i, j), mixed(j, i), f"mixed derivative {i}, {j}")

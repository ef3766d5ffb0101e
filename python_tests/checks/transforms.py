"""torch.func over the operator: every result against the same transform of the reference."""

import torch
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from checks.derivatives import close
from checks.target import BOTH, Target, Theme
from lightkernels.testing import Case

THEME = Theme()
DOUBLE = (torch.float64,)
BATCH = 3


def both(target: Target, sample, transform) -> None:
    """``transform(f)`` agrees for the operator and its reference, over every leaf of the result."""
    actual = torch.utils._pytree.tree_leaves(transform(target.function(sample)))
    expected = torch.utils._pytree.tree_leaves(transform(target.truth_function(sample)))
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        close(a, e, f"leaf {i}")


@THEME.kind(tag="core", dtypes=DOUBLE, fused=99)
def gradient(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    sample = target.build(case, dtype, layout, seed)
    tensors = sample.tensors()
    every = tuple(range(len(tensors)))
    both(target, sample, lambda f: grad(lambda *t: f(*t).sin().sum(), argnums=every)(*tensors))
    both(target, sample, lambda f: vjp(f, *tensors)[1](f(*tensors).cos()))


@THEME.kind(tag="core", dtypes=DOUBLE, layouts=BOTH, turns=True, fused=99)
def batches(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """vmap over x, each weight, bias, all and none but one; over a batch dimension that is not the first."""
    samples = [target.build(case, dtype, layout, seed + i).tensors() for i in range(BATCH)]
    count = len(samples[0])
    sample = target.build(case, dtype, layout, seed)
    chosen = [{i} for i in range(count)] + [set(range(1, count)), set(range(count))]
    for which in chosen:
        for at in (0, 1, -1):
            dims = tuple(at if i in which else None for i in range(count))
            stacked = [torch.stack([s[i] for s in samples], at) if i in which else samples[0][i] for i in range(count)]

            def loop(f, which=which) -> Tensor:
                return torch.stack([f(*(s[i] if i in which else samples[0][i] for i in range(count))) for s in samples])

            close(
                vmap(target.function(sample), dims)(*stacked),
                loop(target.truth_function(sample)),
                f"batch of {sorted(which)} at {at}",
            )


@THEME.kind(tag="core", dtypes=DOUBLE)
def nested_batches(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """vmap within vmap: one over x, one over the rest."""
    sample = target.build(case, dtype, layout, seed)
    x, *rest = sample.tensors()
    images = torch.stack([x, x + 1])
    weights = [torch.stack([t, 2 * t, t - 1]) for t in rest]

    def transform(f):
        inner = vmap(f, (0, *(None for _ in rest)))
        return vmap(inner, (None, *(0 for _ in rest)))(images, *weights)

    both(target, sample, transform)


@THEME.kind(tag="core", dtypes=DOUBLE, fused=99)
def per_sample_gradients(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    sample = target.build(case, dtype, layout, seed)
    x, *rest = sample.tensors()
    which = tuple(range(1, len(rest) + 1))

    def transform(f):
        each = grad(lambda image, *t: f(image[None], *t).sin().sum(), argnums=which)
        return vmap(each, (0, *(None for _ in rest)))(x, *rest)

    both(target, sample, transform)
    both(target, sample, lambda f: vmap(grad(lambda image, *t: f(image[None], *t).sin().sum()))(
        x, *(t.expand(len(x), *t.shape) for t in rest)
    ))  # fmt: skip


@THEME.kind(tag="core", dtypes=DOUBLE, fused=99)
def tangents(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """jvp of the value, of the gradient, and batched."""
    sample, tangent = (target.build(case, dtype, layout, seed + i) for i in range(2))
    t, d = tuple(sample.tensors()), tuple(tangent.tensors())
    both(target, sample, lambda f: jvp(f, t, d))
    both(target, sample, lambda f: jvp(lambda x: f(x, *t[1:]), t[:1], d[:1]))
    both(target, sample, lambda f: jvp(lambda *w: f(t[0], *w), t[1:], d[1:]))
    both(target, sample, lambda f: jvp(grad(lambda *a: f(*a).sin().sum(), argnums=tuple(range(len(t)))), t, d))
    many = tuple(torch.stack([v, -v, 2 * v]) for v in d)
    both(target, sample, lambda f: vmap(lambda *v: jvp(f, t, v)[1])(*many))


@THEME.kind(tag="tiny", dtypes=DOUBLE)
def jacobians(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    sample = target.build(case, dtype, layout, seed)
    tensors = tuple(sample.tensors())
    every = tuple(range(len(tensors)))
    both(target, sample, lambda f: jacrev(f, argnums=every)(*tensors))
    both(target, sample, lambda f: jacfwd(f, argnums=every)(*tensors))


@THEME.kind(tag="tiny", first=2, dtypes=DOUBLE)
def hessians(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    sample = target.build(case, dtype, layout, seed)
    tensors = tuple(sample.tensors())
    both(target, sample, lambda f: hessian(lambda *t: f(*t).sin().sum(), argnums=(0, 1))(*tensors))
    twice = {"argnums": (0, 1)}
    both(target, sample, lambda f: jacrev(jacrev(lambda *t: f(*t).sin().sum(), **twice), **twice)(*tensors))


@THEME.kind(tag="core", first=2, dtypes=DOUBLE)
def ensembles(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """Several models in one call: functional_call under vmap over stacked parameters."""
    sample = target.build(case, dtype, layout, seed)
    x, *rest = sample.tensors()

    class Model(torch.nn.Module):
        def __init__(self, function) -> None:
            super().__init__()
            self.function = function
            self.weights = torch.nn.ParameterList(rest)

        def forward(self, x: Tensor) -> Tensor:
            return self.function(x, *self.weights)

    def transform(f):
        model = Model(f)
        stacked = {k: torch.stack([p.detach() * (i + 1) for i in range(BATCH)]) for k, p in model.named_parameters()}
        return vmap(lambda p: functional_call(model, p, (x,)))(stacked)

    both(target, sample, transform)


@THEME.kind(tag="core", dtypes=DOUBLE)
def chunks(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """vmap in chunks is the same as in one."""
    sample = target.build(case, dtype, layout, seed)
    x, *rest = sample.tensors()
    images = torch.stack([x * (i + 1) for i in range(5)])
    dims = (0, *(None for _ in rest))
    function = target.function(sample)
    whole = vmap(function, dims)(images, *rest)
    close(vmap(function, dims, chunk_size=2)(images, *rest), whole, "chunks of two")


@THEME.kind(tag="core", first=2, dtypes=DOUBLE, layouts=BOTH)
def escaped_tensors(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """A tensor that a transform leaves behind is a wrapper without memory, of no subclass; the values count."""
    sample = target.build(case, dtype, layout, seed)
    tensors = sample.tensors()
    y = target.truth(sample).detach()
    for i, t in enumerate(tensors):
        kept: list[Tensor] = []

        def keep(t: Tensor, kept: list[Tensor] = kept) -> Tensor:
            kept.append(t)
            return t.sum()

        grad(keep)(t)
        jvp(keep, (t,), (t,))
        for wrapper in kept:
            assert type(wrapper) is Tensor
            escaped = sample.replace([wrapper if j == i else other for j, other in enumerate(tensors)])
            with torch.no_grad():
                close(target(escaped), y, f"tensor {i}")
            others = [t.detach().requires_grad_() for t in tensors]
            mixed = sample.replace([wrapper if j == i else other for j, other in enumerate(others)])
            expected = torch.autograd.grad(target.truth(sample.replace(others)).sum(), others)
            wrt = [j for j in range(len(tensors)) if j != i]
            actual = torch.autograd.grad(target(mixed).sum(), [others[j] for j in wrt])
            for j, found in zip(wrt, actual, strict=True):
                close(found, expected[j], f"gradient {j} beside tensor {i}")

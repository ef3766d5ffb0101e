"""Wrong kernels and wrong machinery must turn the generated checks red, each the kinds that are there to see it."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.autograd.gradcheck import GradcheckError

from checks import choice, compiled, derivatives, memory, parity, runtime, transforms
from checks.mutant_routes import ROUTES
from checks.mutants import MUTANTS, right_name, substituted
from checks.target import BORROWED, Check, Kind, Target, packages, planted, why_not

THEMES = (parity, memory, derivatives, transforms, compiled, runtime, choice)
KINDS = {k.name: k for theme in THEMES for k in theme.THEME.kinds}


def target_of(package: str) -> Target:
    """An operator, in the place of its fastest backend that runs here."""
    first = Target(package, "reference").cases.CASES[0]
    here = (Target(package, b) for b in Target(package, "reference").op.backends if b not in BORROWED)
    right = Target(package, right_name(Target(package, "reference")))
    return next((target for target in here if why_not(target, first) is None), right)


def run(kind: Kind, target: Target) -> str | None:
    """The first check of a kind that is red, or None."""
    for case, dtype, layout in kind.forms(kind.cases(target)):
        check = Check(kind, target, case, dtype, layout)
        try:
            kind.check(target, case, dtype, layout, check.seed)
        except (AssertionError, GradcheckError) as error:
            return f"{case.name}-{str(dtype).removeprefix('torch.')}-{layout}: {error}"
    return None


def demand(names: tuple[str, ...], target: Target, report) -> None:
    for name in names:
        red = run(KINDS[name], target)
        assert red is not None, f"{name} did not see it"
        report.append(f"{name} ({red.split(':')[0]})")


@pytest.mark.parametrize("package", packages(bilinear=True))
@pytest.mark.parametrize(
    ("mutant", "name"), [(m, p) for m in MUTANTS for p in m.passes], ids=lambda v: getattr(v, "name", v)
)
def test_wrong_kernel(package, mutant, name, caught):
    target = target_of(package)
    with substituted(target, mutant, name):
        demand(mutant.caught_by, target, caught)


@pytest.mark.parametrize("package", packages(bilinear=True))
@pytest.mark.parametrize("route", ROUTES, ids=lambda r: r.__name__)
def test_wrong_machinery(package, route, caught):
    target = target_of(package)
    right = target.op.backends[right_name(target)].module
    with planted(target, right), route(target):
        demand(ROUTES[route], target, caught)


@pytest.mark.parametrize("package", packages(bilinear=True))
@pytest.mark.parametrize(
    "name", sorted({k for m in MUTANTS for k in m.caught_by} | {k for r in ROUTES.values() for k in r})
)
def test_right_kernel_is_green(package, name):
    """The kinds that are demanded to be red above are green for the same kernels unspoilt."""
    target = target_of(package)
    right = target.op.backends[right_name(target)].module
    few = {"outputs_and_gradients", "whole_numbers", "guards", "nonfinite", "loops", "poison", "flop_count"}
    with planted(target, right) if name not in ("thread_counts", "nonfinite") else nullcontext():
        kind = KINDS[name]
        if target.backend in BORROWED and not kind.backends(target.backend):
            pytest.skip("for native backends")
        for case, dtype, layout in kind.forms(kind.cases(target)[: 4 if name in few else 2]):
            kind.check(target, case, dtype, layout, 1)


def _fused(right, forward=None, backward=None):
    """A backend of a fused operator whose results are spoilt in place."""

    def fwd(spec, t):
        out = right.fwd(spec, t)
        if forward is not None and out[0].numel():
            forward(out[0])
        return out

    def bwd(spec, g, t, out):
        grads = right.bwd(spec, g, t, out)
        if backward is not None:
            backward(grads)
        return grads

    return SimpleNamespace(why_not=lambda spec: None, fwd=fwd, bwd=bwd)


def _scaled(i, by):
    def spoil(grads):
        if grads[i] is not None:
            grads[i].flatten()[: 1 + grads[i].numel() // 2].mul_(1 + by)

    return spoil


def _mean_added(grads):
    grads[0].add_(grads[0].std() / 2**12)


FUSED = {
    "output": ((lambda y: y[:, -1].mul_(1 + 2**-14)), None),
    "last_pixel": ((lambda y: y[..., -1:, -1:].mul_(1 + 2**-12)), None),
    "mean": (None, _mean_added),
    **{f"gradient_{i}": (None, _scaled(i, 2**-12)) for i in range(8)},
}


@pytest.mark.parametrize("spoilt", [None, *FUSED])
def test_wrong_dense_block(spoilt, caught):
    """In float32, of which the bound is the widest but for 16 bit."""
    target = Target("lightkernels.ops.mldn_block", "torch")
    right = target.op.backends["torch"].module
    with planted(target, _fused(right, *FUSED.get(spoilt, (None, None)))):
        reds = []
        for name in ("two_paths", "second", "rsdc"):
            try:
                parity.outputs_and_gradients(target, target.case(name), torch.float32, "nchw", 7)
            except AssertionError as error:
                reds.append(f"{name}: {error}")
    assert bool(reds) == (spoilt is not None), reds
    caught.append(f"{spoilt} ({len(reds)} of 3)")

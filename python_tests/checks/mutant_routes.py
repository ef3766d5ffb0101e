"""Mistakes above the backends: contexts in which the machinery of every operator is wrong."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from checks.target import Target
from lightkernels._core import backends, op, vmap


@contextmanager
def tangent_lost(target: Target) -> Iterator[None]:
    rules = type(target.op.rules)

    def jvp(self: Any, suffix: str, t: Any, args: Any, backend: Any, tangents: Any) -> Tensor:
        return torch.zeros_like(self.op._primitive(suffix, (*t, None) if suffix == "" else t, args, backend))

    with mock.patch.object(rules, "jvp", jvp):
        yield


@contextmanager
def second_derivative_lost(target: Target) -> Iterator[None]:
    rules = type(target.op.rules)
    right = rules.vjp

    def vjp(self: Any, suffix: str, *rest: Any) -> Any:
        grads = right(self, suffix, *rest)
        return grads if suffix == "" else (grads[0], None)

    with mock.patch.object(rules, "vjp", vjp):
        yield


@contextmanager
def batch_mixed_up(target: Target) -> Iterator[None]:
    right = vmap.rule

    def rule(operator: Any, suffix: str, batch: int, *rest: Any) -> Tensor:
        return right(operator, suffix, batch, *rest).roll(1, 0)

    with mock.patch.object(vmap, "rule", rule):
        yield


@contextmanager
def flops_doubled(target: Target) -> Iterator[None]:
    spec = target.op.spec
    right = spec.flops
    with mock.patch.object(spec, "flops", lambda self: 2 * right(self)):
        yield


@contextmanager
def backend_forgotten(target: Target) -> Iterator[None]:
    with mock.patch.object(backends, "wanted", return_value="reference"):
        yield


@contextmanager
def threads_share_the_choice(target: Target) -> Iterator[None]:
    class Shared:
        value: Any = None

        def get(self) -> Any:
            return self.value

        def set(self, value: Any) -> Any:
            self.value, kept = value, self.value
            return kept

        def reset(self, token: Any) -> None:
            pass

    shared = Shared()
    with mock.patch.object(backends, "_forced", shared), mock.patch.object(op, "_forced", shared.get):
        yield


# Each with the kinds of check that must see it.
ROUTES: dict[Callable[[Target], Any], tuple[str, ...]] = {
    tangent_lost: ("dual_numbers", "tangents", "numerical_gradient"),
    second_derivative_lost: ("numerical_second_order", "second_and_third_order", "hessians"),
    batch_mixed_up: ("batches", "per_sample_gradients"),
    flops_doubled: ("flop_count",),
    backend_forgotten: ("backward_on_the_forwards_backend", "backend_choice"),
    threads_share_the_choice: ("backend_choice",),
}

"""Which implementation runs a call.

A backend of an operator is a module beside it with ``why_not(spec) -> str | None`` and plain functions (``fwd``,
``bwd_x``, ``bwd_w``): no autograd and no checks. ``why_not`` is asked in automatic choice, quoted when an explicit
choice cannot be met, and printed by ``explain``. Where ``TAKES_APART`` is true, ``fwd`` also takes a tuple of weights
in place of the packed one.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from lightkernels._core import env, tuning
from lightkernels._core.spec import describe

# In the order in which automatic choice asks, and the file beside op.py that holds each. The CPU precedes Triton, so
# that a call on the CPU neither imports Triton nor takes its interpreter.
FILES = {"cuda": "cuda", "cpu": "native", "triton": "triton", "torch": "composite", "reference": "reference"}
NAMES = ("auto", *FILES)
FALLBACKS = ("torch", "reference")
TIMED_FIRST = ("cuda", "triton")  # on a CUDA device automatic choice takes them where they were the fastest

_forced: ContextVar[str | None] = ContextVar("lightkernels_backend", default=None)
_exact: ContextVar[bool] = ContextVar("lightkernels_exact_nonfinite", default=False)


class BackendUnavailable(RuntimeError):
    """An explicitly chosen backend cannot run the call, or none can; the text says why."""


def check_name(name: object, where: str = "use_backend") -> str:
    if not isinstance(name, str):
        raise TypeError(f"{where}: backend must be a string; got {describe(name)}.")
    if name not in NAMES:
        raise ValueError(f"{where}: backend must be one of {', '.join(map(repr, NAMES))}; got {name!r}.")
    return name


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every operator called inside on backend ``name``; it never falls back to another.

    Args:
        name: ``"auto"``, ``"cuda"``, ``"triton"``, ``"cpu"``, ``"torch"`` or ``"reference"``.

    Raises:
        ValueError: for another name.
        BackendUnavailable: by an operator that the backend cannot run.
    """
    token = _forced.set(check_name(name))
    try:
        yield
    finally:
        _forced.reset(token)


@contextlib.contextmanager
def exact_nonfinite(enabled: bool = True) -> Iterator[None]:
    """Inside, an Inf or NaN reaches exactly the outputs whose taps meet it.

    Off by default: kernels may then multiply by zeros within their window and spread non-finite values there.
    """
    token = _exact.set(bool(enabled))
    try:
        yield
    finally:
        _exact.reset(token)


def wanted(backend: str | None) -> str:
    """The name asked for: argument, then context, then environment."""
    return backend or _forced.get() or check_name(env.BACKEND, "LIGHTKERNELS_BACKEND")


def exact() -> bool:
    return _exact.get()


@dataclass(frozen=True)
class Backend:
    """One implementation of one operator; its module is imported when first asked."""

    name: str
    package: str

    @property
    def module(self) -> ModuleType:
        return importlib.import_module(f"{self.package}.{FILES[self.name]}")

    def why_not(self, spec: Any) -> str | None:
        reason: str | None = self.module.why_not(spec)
        return reason

    def yields(self, spec: Any, kind: str = "fwd") -> str | None:
        """Why automatic choice goes on to the next backend in a pass, though this one could run ``spec``."""
        if self.name not in TIMED_FIRST or spec.device != "cuda":
            return None
        device = tuning.device_name(torch.device("cuda")) if torch.cuda.is_available() else "a CUDA device"
        found = tuning.fastest(self.package.rpartition(".")[2], kind, device, spec)
        if found is None:
            return f"never timed near this size on {device} (`lightkernels tune`); backend={self.name!r} takes it"
        best = found.config["backend"]
        return None if best == self.name else f"{best} was faster on {device}; backend={self.name!r} takes it"

    @property
    def takes_apart(self) -> bool:
        return bool(getattr(self.module, "TAKES_APART", False))

    def function(self, name: str) -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(self.module, name)
        return function


def discover(package: str) -> dict[str, Backend]:
    """The backends whose files stand in an operator's folder, in the order of automatic choice."""
    found = {}
    for name, file in FILES.items():
        if importlib.util.find_spec(f"{package}.{file}") is not None:
            found[name] = Backend(name, package)
    return found


@dataclass(frozen=True)
class Choice:
    """The outcome of a choice: the backend, and for every other one asked before it the reason against it."""

    backend: Backend
    reasons: dict[str, str]


_told: set[tuple[str, str]] = set()


def choose_each(op: str, backends: dict[str, Backend], spec: Any, want: str, kinds: Sequence[str]) -> dict[str, Choice]:
    """The choice for every pass of an operator; on a GPU the fastest of each, elsewhere one for all."""
    first = choose(op, backends, spec, want, kinds[0])
    if want != "auto" or spec.device != "cuda":
        return dict.fromkeys(kinds, first)
    return {kind: choose(op, backends, spec, want, kind) if i else first for i, kind in enumerate(kinds)}


def choose(op: str, backends: dict[str, Backend], spec: Any, want: str, kind: str = "fwd") -> Choice:
    """The first backend that can run a pass of ``spec``; only ``want`` itself unless it is ``"auto"``.

    Automatic choice passes over a GPU backend that was not the fastest near such a call on the device, or was never
    timed there, so that no call is slower than PyTorch unawares.

    Raises:
        BackendUnavailable: with the backend's own reason, or with all reasons if no backend is left.
    """
    if want != "auto":
        check_name(want, op)
        if want not in backends:
            raise BackendUnavailable(f"{op}: backend {want!r} is not implemented for this operator")
        reason = backends[want].why_not(spec)
        if reason is not None:
            raise BackendUnavailable(f"{op}: backend {want!r} cannot run this call: {reason}")
        return Choice(backends[want], {})
    reasons: dict[str, str] = {}
    for name, backend in backends.items():
        reason = backend.why_not(spec) or backend.yields(spec, kind)
        if reason is None:
            if name in FALLBACKS and reasons:
                _tell(op, name, reasons)
            return Choice(backend, reasons)
        reasons[name] = reason
    raise BackendUnavailable(f"{op}: no backend can run this call: {_join(reasons)}")


def _join(reasons: dict[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())


def _tell(op: str, name: str, reasons: dict[str, str]) -> None:
    text = _join(reasons)
    if env.STRICT:
        raise BackendUnavailable(f"{op}: LIGHTKERNELS_STRICT=1 and only backend {name!r} is left: {text}")
    if (op, text) not in _told:
        _told.add((op, text))
        env.logger.info("%s runs on backend %r: %s", op, name, text)

"""Says which backend would run a call, and why not the others."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lightkernels._core import backends as _backends


@dataclass(frozen=True)
class Explanation:
    """Printable; ``chosen`` is None if the call cannot run.

    ``reasons``: why a backend cannot run the call. ``passed``: why automatic choice does without one that can.
    """

    op: str
    asked: str
    chosen: str | None
    reasons: dict[str, str | None]
    layout: str
    copies: str | None
    config: str | None
    flops: int
    bytes: int
    passed: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.op}: {self.chosen or 'no backend'} (asked for: {self.asked})"]
        for name, reason in self.reasons.items():
            passed = f", but automatic choice passes over it: {self.passed[name]}" if name in self.passed else ""
            mark = "chosen" if name == self.chosen else f"could run{passed}" if reason is None else reason
            lines.append(f"  {name:<10} {mark}")
        lines.append(f"  layout     {self.layout}, {self.copies or 'no copy'}")
        lines.append(f"  config     {self.config or 'none to tune'}")
        lines.append(f"  work       {self.flops / 1e6:.3g} MFLOP, at least {self.bytes / 1e6:.3g} MB")
        return "\n".join(lines)


class _Seen(Exception):
    """The call is noted; it need not run."""


class _Recorder(TorchDispatchMode):
    """Notes an operator's call instead of running it."""

    def __init__(self, op: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.op = op
        self.seen: list[tuple[str, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not self.op.ops[""]:
            return func(*args, **(kwargs or {}))
        self.seen.append((_backends.wanted((kwargs or {}).get("backend")), self.op.called(args)))
        raise _Seen


def explain(op: str | Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Which backend would run ``op(*args, **kwargs)``, every other one's reason, layout, copies and tuned config.

    Args:
        op: an operator's name, such as ``"multi_dwconv2d"``, or its public function.
        args, kwargs: the operator's own arguments.

    Raises:
        ValueError: for an unknown operator, or as the operator itself for wrong arguments (TypeError too).

    Example:
        >>> x, w = torch.randn(1, 8, 16, 16), torch.randn(8, 1, 3, 3)
        >>> print(lightkernels.explain("multi_dwconv2d", x, [w], backend="reference").chosen)
        reference
    """
    from lightkernels import ops

    name = op if isinstance(op, str) else getattr(op, "__name__", repr(op))
    package = getattr(ops, name, None)
    if package is None or not hasattr(package, "OP"):
        known = sorted(n for n, v in vars(ops).items() if hasattr(v, "OP"))
        raise ValueError(f"explain: op must be one of {', '.join(known)}; got {name!r}")
    recorder = _Recorder(package.OP)
    with contextlib.suppress(_Seen), torch.no_grad(), recorder:
        getattr(package, name)(*args, **kwargs)
    asked, spec = recorder.seen[0]
    reasons: dict[str, str | None] = {n: b.why_not(spec) for n, b in package.OP.backends.items()}
    try:
        choice = _backends.choose(name, package.OP.backends, spec, asked)
        chosen = choice.backend
    except _backends.BackendUnavailable:
        chosen = None
    able = (b for n, b in package.OP.backends.items() if reasons[n] is None)
    passed = {b.name: why for b in able if (why := b.yields(spec)) is not None}
    module = chosen.module if chosen else None
    copies = module.copies(spec) if module and hasattr(module, "copies") else None
    config = module.config_text(spec) if module and hasattr(module, "config_text") else None
    best = chosen.name if chosen else None
    work = (spec.flops(), spec.bytes())
    return Explanation(name, asked, best, reasons, spec.layout, copies, config, *work, passed=passed)

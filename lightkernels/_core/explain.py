"""Says which backend would run a call, and why not the others."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from lightkernels._core import backends as _backends
from lightkernels._core.record import Recorder, Seen


@dataclass(frozen=True)
class Explanation:
    """Printable; ``chosen`` is None if the call cannot run.

    ``reasons``: why a backend cannot run the call. ``passed``: why automatic choice does without one that can.
    ``passes``: the backend of each pass; ``chosen`` is the forward's.
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
    passes: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.op}: {self.chosen or 'no backend'} (asked for: {self.asked})"]
        for name, reason in self.reasons.items():
            passed = f", but automatic choice passes over it: {self.passed[name]}" if name in self.passed else ""
            mark = "chosen" if name == self.chosen else f"could run{passed}" if reason is None else reason
            lines.append(f"  {name:<10} {mark}")
        if len(set(self.passes.values())) > 1:
            lines.append("  passes     " + ", ".join(f"{kind} on {name}" for kind, name in self.passes.items()))
        lines.append(f"  layout     {self.layout}, {self.copies or 'no copy'}")
        lines.append(f"  config     {self.config or 'none to tune'}")
        lines.append(f"  work       {self.flops / 1e6:.3g} MFLOP, at least {self.bytes / 1e6:.3g} MB")
        return "\n".join(lines)


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
    recorder = Recorder([package.OP], run=False)
    with contextlib.suppress(Seen), torch.no_grad(), recorder:
        getattr(package, name)(*args, **kwargs)
    _, values, asked = recorder.calls[0]
    spec = package.OP.called(values)
    reasons: dict[str, str | None] = {n: b.why_not(spec) for n, b in package.OP.backends.items()}
    try:
        each = _backends.choose_each(name, package.OP.backends, spec, asked, package.OP.kinds)
        chosen, passes = each["fwd"].backend, {kind: choice.backend.name for kind, choice in each.items()}
    except _backends.BackendUnavailable:
        chosen, passes = None, {}
    able = (b for n, b in package.OP.backends.items() if reasons[n] is None)
    passed = {b.name: why for b in able if (why := b.yields(spec)) is not None}
    module = chosen.module if chosen else None
    copies = module.copies(spec) if module and hasattr(module, "copies") else None
    config = module.config_text(spec) if module and hasattr(module, "config_text") else None
    best = chosen.name if chosen else None
    work = (spec.flops(), spec.bytes())
    return Explanation(name, asked, best, reasons, spec.layout, copies, config, *work, passed, passes)

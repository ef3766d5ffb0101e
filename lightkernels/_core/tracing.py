"""torch.jit.trace: an operator is one node of the graph, and what decides about a call is not recorded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

state = torch._C._get_tracing_state


def recording() -> bool:
    """Whether the calls made now are written down: by torch.jit.trace or by torch.compile."""
    return bool(torch.compiler.is_compiling()) or state() is not None


@contextlib.contextmanager
def untraced() -> Iterator[None]:
    """Inside, sizes are plain numbers again."""
    kept = state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._C._set_tracing_state(kept)  # type: ignore[attr-defined]

"""Loads the native modules, once and lazily. torch comes first, so that its OpenMP runtime serves both."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

import torch  # noqa: F401  (see above: must be loaded before the native module)

from lightkernels._core import env


@functools.cache
def load(name: str, needed: str | None = None) -> tuple[ModuleType | None, str | None]:
    """The native module ``lightkernels.<name>``, or None and why it is not there, or lacks what is ``needed`` of it."""
    if env.DISABLE_NATIVE:
        return None, "switched off by LIGHTKERNELS_DISABLE_NATIVE=1"
    full = f"lightkernels.{name}"
    try:
        module = importlib.import_module(full)
    except ModuleNotFoundError as error:
        if error.name == full:
            return None, (
                f"the native module {full} is not built (running from a source tree?). Hint: pip install . builds it"
            )
        return None, f"{full} failed to load: {error}"
    except ImportError as error:
        return None, f"{full} failed to load: {error}"
    if name == "_C" and env.CPU_ISA is not None and module.isa() != env.CPU_ISA:
        return None, _isa_reason(module)
    if needed is not None and not hasattr(module, needed):
        return None, f"the native module {full} is older than this operator. Hint: pip install . builds it anew"
    return module, None


def _isa_reason(module: ModuleType) -> str:
    usable = [isa for isa, (built, supported) in module.isas().items() if built and supported]
    return f"LIGHTKERNELS_CPU_ISA={env.CPU_ISA} is not to be had here; usable: {', '.join(usable)}"

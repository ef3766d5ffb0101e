"""Loads the native modules, once and lazily. torch comes first, so that its OpenMP runtime serves both."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any

import torch  # must be loaded before the native module, see above
from torch import Tensor

from lightkernels._core import env
from lightkernels._core.spec import is_dense

# In the order of DType in csrc/lk/cpu.h.
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


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


def why_not(spec: Any, plan: str) -> str | None:
    """Why the CPU kernels whose calls are a ``plan`` cannot run this one."""
    if spec.device != "cpu":
        return f"the tensors are on {spec.device}, not on the CPU"
    module, reason = load("_C", plan)
    if module is None:
        return reason
    if spec.dtype not in DTYPES:
        return f"dtype {spec.dtype} is not supported"
    return None


def plan_class(name: str) -> Any:
    """The class of an operator's calls in the CPU module."""
    module, reason = load("_C", name)
    if module is None:
        raise RuntimeError(reason)
    return getattr(module, name)


def gradient(spec: Any, g: Tensor) -> Tensor:
    """g, or a copy of it that kernels can read: rows (nchw) or pixels (nhwc) without gaps."""
    stride = g.stride()
    if stride == spec.y_stride or is_dense(g.shape, stride, spec.layout):
        return g
    unit = 1 if spec.layout == "nhwc" else 3
    if stride[unit] == 1 and min(stride) > 0:
        return g
    return g.new_empty_strided(spec.y_shape, spec.y_stride).copy_(g)


def _isa_reason(module: ModuleType) -> str:
    usable = [isa for isa, (built, supported) in module.isas().items() if built and supported]
    return f"LIGHTKERNELS_CPU_ISA={env.CPU_ISA} is not to be had here; usable: {', '.join(usable)}"

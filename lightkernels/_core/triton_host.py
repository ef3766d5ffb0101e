"""What every Triton backend asks before its kernels are imported; nothing here needs Triton to be imported."""

from __future__ import annotations

import functools
import importlib.util
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

GRID_LIMIT = 2**31 - 1


@functools.cache
def _missing() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    try:
        import triton  # noqa: F401
    except Exception as error:  # a broken installation must not break the other backends
        return f"Triton cannot be imported: {error}"
    return None


@functools.cache
def interpreting() -> bool:
    from triton import knobs

    return bool(knobs.runtime.interpret)


def unsuited(device: str) -> str | None:
    """Why Triton kernels cannot run on a type of device, or None."""
    if device not in ("cuda", "cpu"):
        return f"the tensors are on {device}, not on a CUDA device"
    missing = _missing()
    if missing is not None:
        return missing
    if device == "cpu" and not interpreting():
        return "the tensors are on the CPU and Triton's interpreter is off (TRITON_INTERPRET=1)"
    if device == "cuda" and interpreting():
        return "Triton's interpreter is on (TRITON_INTERPRET=1); it is for CPU tensors here"
    if device == "cuda" and torch.version.hip is not None:
        return "the kernels have been compiled for NVIDIA devices only, not for ROCm"
    return None


def dot_mode(dtype: torch.dtype) -> str:
    """How kernels multiply matrices, when they are called; "wide" is for the interpreter, which has no bfloat16.

    PyTorch lets cuDNN round float32 to TF32 unless it is told not to, in one of two ways, and reading the older flag
    fails where the newer was set.
    """
    if interpreting():
        return "wide" if dtype is torch.bfloat16 else "ieee"
    allowed = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    return "tf32" if dtype is torch.float32 and allowed == "tf32" else "ieee"


def guard(device: torch.device) -> AbstractContextManager[Any]:
    """Inside, ``device`` is the current one: Triton launches there."""
    if device.type != "cuda" or torch.cuda.current_device() == device.index:
        return nullcontext()
    return torch.cuda.device(device)


def pow2(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def blocks(*pairs: tuple[int, int]) -> int:
    """The product of the numbers of blocks that (size, block) pairs need."""
    total = 1
    for size, block in pairs:
        total *= -(-size // block)
    return total

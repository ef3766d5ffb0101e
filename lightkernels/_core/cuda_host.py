"""What every native CUDA backend asks before its kernels run."""

from __future__ import annotations

import functools
from typing import Any

import torch

from lightkernels._core import native

DEVICE = "cuda"
SIZE_LIMIT = 2**31 - 1  # of what the kernels count in 32 bits


def unsuited(device: str, needed: str) -> str | None:
    """Why the kernels of lightkernels._cuda, which has to know ``needed``, cannot run on a type of device, or None."""
    if device != DEVICE:
        return f"the tensors are on {device}, not on a CUDA device"
    found, reason = native.load("_cuda", needed)
    return reason if found is None else _image(found, current_device())


def module(needed: str) -> Any:
    found, reason = native.load("_cuda", needed)
    if found is None:
        raise RuntimeError(reason)
    return found


@functools.cache
def _image(module: Any, device: int) -> str | None:
    """Why the module has no code for a device: its driver's own words."""
    if device < 0:
        return "there is no CUDA device"
    arch = module.image_arch(device)
    return None if isinstance(arch, int) else f"lightkernels._cuda does not run on this device: {arch}"


def shared_memory(needed: str) -> int:
    """Bytes of shared memory that a block of threads may have on the current device."""
    return _shared(module(needed), current_device())


@functools.cache
def _shared(module: Any, device: int) -> int:
    found = module.shared_memory(device)
    if not isinstance(found, int):
        raise RuntimeError(f"lightkernels._cuda: {found}")
    return found


def current_device() -> int:
    return torch.cuda.current_device() if torch.cuda.is_available() else -1


def stream(device: torch.device) -> int:
    found: int = torch._C._cuda_getCurrentRawStream(device.index)
    return found

"""Sets of taps: cells ``y * k + x`` of a k x k window, int64 [S, T], no cell twice in a set."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from lightkernels._core.spec import LARGEST_STEP, fail_type, message, require, require_tensor
from lightkernels._core.tracing import untraced

# By id: what is known to be right is one tensor in one version, in windows of one size.
_checked: dict[int, tuple[weakref.ref[Tensor], int, int]] = {}


def check_count(op: str, taps: int, kernel_size: int) -> None:
    """T cells fit into the window."""
    _check_window(op, kernel_size)
    cells = kernel_size * kernel_size
    side = next(k for k in range(1, max(taps, 1) + 2, 2) if k * k >= taps)
    hint = f"pass taps={cells}, or kernel_size={side}, the smallest window of {taps} cells."
    require(1 <= taps <= cells, op, "taps", f"be from 1 to {cells}, the cells of a window of {kernel_size}", taps, hint)


def _check_window(op: str, kernel_size: int) -> None:
    """The number of its cells fits into int64."""
    require(kernel_size <= LARGEST_STEP, op, "kernel_size", f"be at most {LARGEST_STEP}", kernel_size)


def check_form(op: str, taps: object) -> None:
    """A tensor of the right type and dimensions."""
    require_tensor(op, "taps", taps)
    assert isinstance(taps, Tensor)
    if taps.dtype is not torch.int64:
        fail_type(op, "taps", "be int64", taps, "taps are cells y * k + x of the window: taps.long().")
    if taps.layout is not torch.strided:
        fail_type(op, "taps", "be a dense tensor", str(taps.layout), "taps.to_dense() makes one.")
    require(taps.dim() == 2, op, "taps", "have shape [S, T], one set of T cells a row", taps)


def check_values(op: str, taps: Tensor, kernel_size: int) -> None:
    """Every cell inside the window, none twice in a set; reads the values, so a device waits.

    Raises:
        TypeError, ValueError: with the first wrong set and cell.
    """
    check_form(op, taps)
    if taps.device.type == "meta" or taps.numel() == 0 or kernel_size < 1:
        return
    _check_window(op, kernel_size)
    cells = kernel_size * kernel_size
    values = taps.detach().cpu()
    outside = (values < 0) | (values >= cells)
    if bool(outside.any()):
        s, t = (int(i) for i in outside.nonzero()[0])
        hint = f"a window of {kernel_size} has the cells 0 to {cells - 1}, y * {kernel_size} + x."
        raise ValueError(message(op, f"taps[{s}, {t}]", f"be from 0 to {cells - 1}", int(values[s, t]), hint))
    ordered = values.sort(1).values
    repeated = ordered[:, 1:] == ordered[:, :-1]
    if bool(repeated.any()):
        s, t = (int(i) for i in repeated.nonzero()[0])
        hint = f"cell {int(ordered[s, t])} is there twice; torch.randperm({cells})[:{taps.shape[1]}] repeats none."
        raise ValueError(message(op, f"taps[{s}]", "have no cell twice", values[s].tolist(), hint))


def check_once(op: str, taps: Any, kernel_size: int) -> None:
    """``check_values``, remembered for the tensor and its version; nothing where there are no values to read."""
    known = _checked.get(id(taps))
    if known is not None and taps is (seen := known[0]()) is not None and known[1:] == (seen._version, kernel_size):
        return
    if not isinstance(taps, Tensor) or not _has_values(taps):
        check_form(op, taps)
        return
    with untraced():
        check_values(op, taps, kernel_size)
    if not taps.is_inference():
        _remember(taps, kernel_size)


def _remember(taps: Tensor, kernel_size: int) -> None:
    key = id(taps)
    _checked[key] = (weakref.ref(taps, lambda _: _checked.pop(key, None)), taps._version, kernel_size)


def _has_values(taps: Tensor) -> bool:
    plain = type(taps) in (Tensor, torch.nn.Parameter) and not torch._C._functorch.is_functorch_wrapped_tensor(taps)
    traced = torch._C._len_torch_dispatch_stack() > 0
    return plain and not traced and not (taps.is_cuda and torch.cuda.is_current_stream_capturing())


def draw(
    sets: int,
    taps: int,
    kernel_size: int,
    *,
    center: bool = False,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """int64 [sets, taps], every set uniform among those of its size (``center``: among those with the middle cell).

    Each set is sorted. The numbers come from the CPU's generator, so a seed gives the same sets on every device.
    """
    cells = kernel_size * kernel_size
    order = torch.rand(sets, cells, generator=generator, dtype=torch.float64, device="cpu")
    if center:
        order[:, cells // 2] = -1
    chosen = order.argsort(1)[:, :taps].clone(memory_format=torch.contiguous_format)
    return chosen.sort(1).values.to(device or "cpu")


def trust(taps: Tensor, kernel_size: int) -> None:
    """Remember a set that was just drawn as right, so that no device has to wait for its values."""
    if not torch.compiler.is_compiling() and not taps.is_inference() and _has_values(taps):
        _remember(taps, kernel_size)

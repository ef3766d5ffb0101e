"""What module and model constructors check before they allocate anything, and images without a batch."""

from __future__ import annotations

from collections.abc import Collection

import torch.fx
from torch import Tensor

from lightkernels._core.spec import fail_type, pair, require

# torch.fx.symbolic_trace records a call of these and of our operators: it could not follow what they ask of sizes.
torch.fx.wrap("batched")
torch.fx.wrap("batched_as")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def one_of(op: str, arg: str, value: object, allowed: Collection[str]) -> None:
    known = isinstance(value, str) and value in allowed
    require(known, op, arg, f"be one of {', '.join(map(repr, allowed))}", value)


def flag(op: str, arg: str, value: object) -> bool:
    if not isinstance(value, bool):
        fail_type(op, arg, "be a bool", value)
    return value


def positive_int(op: str, arg: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        fail_type(op, arg, "be an int", value)
    require(value >= 1, op, arg, "be at least 1", value)
    return value


def int_tuple(op: str, arg: str, value: object, what: str) -> tuple[int, ...]:
    """`value` as a tuple: an int stands for one entry; every entry at least 1."""
    entries = (value,) if isinstance(value, int) else value
    if not isinstance(entries, tuple | list) or not all(map(_is_int, entries)):
        fail_type(op, arg, f"be {what}", value)
    require(all(entry >= 1 for entry in entries), op, arg, "be at least 1 everywhere", value)
    return tuple(entries)


def int_pair(op: str, arg: str, value: object) -> tuple[int, int]:
    entries = pair(op, arg, value)
    require(min(entries) >= 1, op, arg, "be at least 1", value)
    return entries


def odd_kernels(op: str, value: object) -> tuple[int, ...]:
    sizes = int_tuple(op, "kernel_sizes", value, "an int or a sequence of ints")
    require(len(sizes) > 0, op, "kernel_sizes", "name at least one branch", value)
    odd = all(size % 2 for size in sizes)
    hint = "an even kernel has no centre, so branches of different sizes would not line up."
    require(odd, op, "kernel_sizes", "be odd", value, hint=hint)
    return sizes


def one_per_branch(op: str, arg: str, value: object, branches: int) -> tuple[int, ...]:
    entries = int_tuple(op, arg, value, "an int or one int a branch")
    entries = entries * branches if isinstance(value, int) else entries
    require(len(entries) == branches, op, arg, f"be an int or have {branches} entries, one a branch", value)
    return entries


def share(op: str, arg: str, value: object) -> float:
    """A number from 0 to less than 1."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        fail_type(op, arg, "be a number", value)
    require(0 <= value < 1, op, arg, "be at least 0 and less than 1", value)
    return float(value)


def batched(x: Tensor) -> Tensor:
    """A batch of one image for one image; what is no tensor is left to the operator, which refuses it by name."""
    return x.unsqueeze(0) if isinstance(x, Tensor) and x.dim() == 3 else x


def batched_as(y: Tensor, x: Tensor) -> Tensor:
    """``y`` without its batch, if ``x`` has none."""
    return y.squeeze(0) if x.dim() == 3 else y

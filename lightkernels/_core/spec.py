"""What a backend may know of a call: shapes and values, never data. Validation helpers and layouts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple, NoReturn

import torch
from torch import Tensor

Layout = Literal["nchw", "nhwc"]
Pair = tuple[int, int]
LARGEST_STEP = 2**31 - 1


class TensorMeta(NamedTuple):
    """Shape, stride, dtype and device of a tensor that need not exist."""

    shape: Sequence[int]
    stride: Sequence[int]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, t: Tensor) -> TensorMeta:
        return cls(t.shape, t.stride(), t.dtype, t.device)

    @classmethod
    def dense(cls, shape: Sequence[int], channels_last: bool, like: Tensor) -> TensorMeta:
        layout: Layout = "nhwc" if channels_last else "nchw"
        stride = dense_stride(shape, layout) if len(shape) == 4 else ()
        return cls(shape, stride, like.dtype, like.device)


def describe(value: object) -> str:
    """A value as error messages show it: a tensor by shape, dtype and device."""
    if isinstance(value, Tensor | TensorMeta):
        return f"{list(value.shape)} ({str(value.dtype).removeprefix('torch.')}, {value.device})"
    if isinstance(value, torch.dtype | torch.device):
        return str(value).removeprefix("torch.")
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, tuple | list) and any(isinstance(v, Tensor) for v in value):
        return f"{type(value).__name__} of {', '.join(map(describe, value[:3]))}{', ...' if len(value) > 3 else ''}"
    if isinstance(value, int | float | tuple | list) or value is None:
        return str(value)
    return type(value).__name__


def message(op: str, arg: str, expected: str, got: object, hint: str | None = None) -> str:
    text = f"{op}: {arg} must {expected}; got {describe(got)}."
    return f"{text} Hint: {hint}" if hint else text


def require(ok: Any, op: str, arg: str, expected: str, got: object, hint: str | None = None) -> None:
    """Raise ValueError in the one message form unless ``ok``; a symbolic ``ok`` becomes a run-time check."""
    if ok is True:
        return
    if isinstance(ok, torch.SymBool):
        torch._check(ok, lambda: message(op, arg, expected, got, hint))
    elif not ok:
        raise ValueError(message(op, arg, expected, got, hint))


def require_step(op: str, arg: str, value: Any, least: int = 1) -> None:
    """A stride, dilation or padding: so large that a product with a kernel's size leaves 64 bits is an error."""
    require(value >= least, op, arg, f"be at least {least}", value)
    require(value <= LARGEST_STEP, op, arg, f"be at most {LARGEST_STEP}", value)


def effective_step(step: int, places: int) -> int:
    """A stride as kernels get it: one beyond all places of a window says no more, but passes may count its phases."""
    return max(1, min(step, places))


def fail_type(op: str, arg: str, expected: str, got: object, hint: str | None = None) -> NoReturn:
    raise TypeError(message(op, arg, expected, got, hint))


def require_tensor(op: str, arg: str, value: object) -> None:
    if not isinstance(value, Tensor):
        fail_type(op, arg, "be a tensor", value)


def pair(op: str, arg: str, value: object) -> Pair:
    """An int or a pair of ints as a pair."""
    if isinstance(value, int) and not isinstance(value, bool):
        return (value, value)
    if isinstance(value, tuple | list) and len(value) == 2:
        a, b = value
        if all(isinstance(v, int) and not isinstance(v, bool) for v in (a, b)):
            return (a, b)
    fail_type(op, arg, "be an int or a pair of ints", value)


def _true(condition: Any) -> bool:
    """A condition on sizes, as a bool; an undecidable symbolic one is False."""
    if isinstance(condition, torch.SymBool):
        from torch.fx.experimental.symbolic_shapes import guard_or_false

        return bool(guard_or_false(condition))
    return bool(condition)


def dense_stride(shape: Sequence[int], layout: Layout) -> tuple[int, ...]:
    _, c, h, w = shape
    if layout == "nhwc":
        return (h * w * c, 1, w * c, c)
    return (c * h * w, h * w, w, 1)


def is_dense(shape: Sequence[int], stride: Sequence[int], layout: Layout) -> bool:
    """Whether a tensor is contiguous in ``layout``; strides of dimensions of size 1 do not matter."""
    if any(_true(size == 0) for size in shape):
        return True
    n, c, h, w = shape
    order = ((w, 3), (h, 2), (c, 1), (n, 0)) if layout == "nchw" else ((c, 1), (w, 3), (h, 2), (n, 0))
    expected: Any = 1
    for size, dim in order:
        if not _true(size == 1) and not _true(stride[dim] == expected):
            return False
        expected = expected * size
    return True


def layout_of(shape: Sequence[int], stride: Sequence[int]) -> Layout:
    """nhwc where channels are innermost (a dense tensor or a slice of one) and the default format does not fit."""
    if is_dense(shape, stride, "nchw"):
        return "nchw"
    if is_dense(shape, stride, "nhwc"):
        return "nhwc"
    n, c, h, w = shape
    sn, sc, sh, sw = stride
    if _true(c == 1) or not _true(sc == 1):
        return "nchw"
    inner = _true(w == 1) or _true(sw >= c)
    middle = _true(h == 1) or _true(sh >= w * c)
    outer = _true(n == 1) or _true(sn >= h * w * c)
    return "nhwc" if inner and middle and outer else "nchw"


class Maps:
    """What follows from the sizes of a call on maps, NCHW or channels_last; the base of such operators' specs."""

    n: int
    c: int
    h: int
    w: int
    dtype: torch.dtype
    layout: Layout

    @cached_property
    def x_shape(self) -> tuple[int, ...]:
        return (self.n, self.c, self.h, self.w)

    @cached_property
    def y_shape(self) -> tuple[int, ...]:
        raise NotImplementedError

    @cached_property
    def y_stride(self) -> tuple[int, ...]:
        return dense_stride(self.y_shape, self.layout)

    @cached_property
    def dense_x_stride(self) -> tuple[int, ...]:
        return dense_stride(self.x_shape, self.layout)

    @cached_property
    def acc_dtype(self) -> torch.dtype:
        return torch.float64 if self.dtype is torch.float64 else torch.float32


def ceil_div(a: int, b: int) -> int:
    return (a + b - 1) // b

"""Wrong kernels, made from right ones: what each does wrong, in which pass, and which kinds of check must see it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from checks.target import Target, planted
from lightkernels.testing import GUARD

PASSES = ("fwd", "bwd_x", "bwd_w")
MAPS = ("fwd", "bwd_x")


@dataclass(frozen=True)
class Mutant:
    """``change(right, name)`` gives the wrong function for the pass ``name``."""

    name: str
    change: Callable[[Callable[..., Tensor], str], Callable[..., Tensor]]
    passes: tuple[str, ...]
    caught_by: tuple[str, ...]


MUTANTS: list[Mutant] = []


def mutant(*caught_by: str, passes: tuple[str, ...] = PASSES) -> Callable[[Any], Any]:
    def register(change: Callable[[Callable[..., Tensor], str], Callable[..., Tensor]]) -> Any:
        MUTANTS.append(Mutant(change.__name__, change, passes, caught_by))
        return change

    return register


def after(*caught_by: str, passes: tuple[str, ...] = PASSES) -> Callable[[Any], Any]:
    """A mutant that spoils the right result in place: ``spoil(result)``."""

    def register(spoil: Callable[[Tensor], object]) -> Any:
        def change(right: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
            def wrong(*args: Any) -> Tensor:
                y = right(*args).clone()
                if y.numel():
                    spoil(y)
                return y

            return wrong

        MUTANTS.append(Mutant(spoil.__name__, change, passes, caught_by))
        return spoil

    return register


@after("outputs_and_gradients", "whole_numbers", passes=MAPS)
def last_row_dropped(y: Tensor) -> None:
    y[..., -1, :] = 0


@after("outputs_and_gradients", "whole_numbers", passes=MAPS)
def first_column_dropped(y: Tensor) -> None:
    y[..., 0] = 0


@after("outputs_and_gradients", "adjoint", passes=("fwd",))
def rows_shifted(y: Tensor) -> None:
    y.copy_(y.roll(1, 2))


@after("outputs_and_gradients", "whole_numbers", "numerical_gradient", passes=("bwd_w",))
def gradient_of_taps_shifted(y: Tensor) -> None:
    y.copy_(y.roll(1))


@after("outputs_and_gradients", "adjoint")
def halves_swapped(y: Tensor) -> None:
    """Two branches (for an output of one branch: two halves of it) in the wrong order."""
    dim = 1 if y.dim() == 4 else 0
    y.copy_(y.roll(y.shape[dim] // 2, dim))


@after("outputs_and_gradients")
def one_channel_scaled(y: Tensor) -> None:
    (y[:, -1] if y.dim() == 4 else y[-1:]).mul_(1 + 2**-10)


@after("outputs_and_gradients", "numerical_gradient", "adjoint", "training", passes=("bwd_x", "bwd_w"))
def gradient_dropped(y: Tensor) -> None:
    y.zero_()


@after("outputs_and_gradients", passes=MAPS)
def channels_after_sixteen_dropped(y: Tensor) -> None:
    y[:, 16:] = 0


@after("outputs_and_gradients", passes=MAPS)
def columns_after_sixteen_dropped(y: Tensor) -> None:
    y[..., 16:] = 0


@after("outputs_and_gradients", passes=MAPS)
def rows_after_thirty_two_dropped(y: Tensor) -> None:
    y[..., 32:, :] = 0


@after("bulk_whole_numbers", "adjoint", passes=MAPS)
def third_image_dropped(y: Tensor) -> None:
    y[2:] = 0


@after("outputs_and_gradients")
def float64_through_float32(y: Tensor) -> None:
    y.copy_(y.float())


@after("outputs_and_gradients")
def float32_through_bfloat16(y: Tensor) -> None:
    if y.dtype is torch.float32:
        y.copy_(y.bfloat16())


def _padding(y: Tensor) -> Tensor | None:
    """The storage of a guarded buffer; None for any other."""
    store = torch.empty(0, dtype=torch.uint8).set_(y.untyped_storage())
    item = y.element_size()
    span = 1 + sum((s - 1) * d for s, d in zip(y.shape, y.stride(), strict=True)) if y.numel() else 0
    return (
        store if store.numel() == (y.storage_offset() + span + GUARD) * item and y.storage_offset() >= GUARD else None
    )


def _outside(where: Callable[[Tensor, int, int], None]) -> Callable[[Callable[..., Tensor], str], Any]:
    def change(right: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
        def wrong(*args: Any) -> Tensor:
            result = right(*args)
            y = result.new_empty_strided(result.shape, result.stride()).copy_(result)
            store = _padding(y)
            if store is not None:
                where(store, y.storage_offset() * y.element_size(), store.numel() - GUARD * y.element_size())
            return y

        return wrong

    return change


@mutant("guards")
def written_past_the_end(right: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    def write(store: Tensor, begin: int, end: int) -> None:
        store[end] = 0

    return _outside(write)(right, name)


@mutant("guards")
def written_before_the_start(right: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    def write(store: Tensor, begin: int, end: int) -> None:
        store[begin - 1] = 0

    return _outside(write)(right, name)


@mutant("inputs_between_nans")
def read_past_the_end(right: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    def wrong(spec: Any, a: Tensor, *rest: Any) -> Tensor:
        y = right(spec, a, *rest).clone()
        flat = torch.empty(0, dtype=a.dtype).set_(a.untyped_storage())
        end = a.storage_offset() + 1 + sum((s - 1) * d for s, d in zip(a.shape, a.stride(), strict=True))
        return y + 0 * flat[end] if a.numel() and end < flat.numel() else y

    return wrong


@mutant("poison", "outputs_and_gradients")
def last_row_never_written(right: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    def wrong(*args: Any) -> Tensor:
        y = right(*args)
        z = torch.empty_like(y)
        if y.dim() == 4:
            z[..., :-1, :] = y[..., :-1, :]
        else:
            z[:-1] = y[:-1]
        return z

    return wrong


@mutant("outputs_are_fresh")
def stale_output(right: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    """One buffer a shape, filled the first time."""
    kept: dict[Any, Tensor] = {}

    def wrong(spec: Any, *rest: Any) -> Tensor:
        key = (spec.x_shape, spec.y_shape, spec.y_stride, spec.dtype)
        if key not in kept:
            kept[key] = right(spec, *rest)
        return kept[key].clone()

    return wrong


@mutant("outputs_are_fresh", passes=("fwd",))
def shared_output(right: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    """One buffer a shape, filled every time."""
    kept: dict[Any, Tensor] = {}

    def wrong(spec: Any, *rest: Any) -> Tensor:
        y = right(spec, *rest)
        return kept.setdefault((spec.y_shape, spec.y_stride, spec.dtype), y).copy_(y)

    return wrong


@mutant("python_threads")
def race(right: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    """Scratch memory that all threads share."""
    scratch: dict[str, Any] = {}

    def wrong(spec: Any, *rest: Any) -> Tensor:
        scratch["rest"] = rest
        time.sleep(0.001)
        return right(spec, *scratch["rest"])

    return wrong


@mutant("repeats")
def another_order_every_time(right: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    count = [0]

    def wrong(*args: Any) -> Tensor:
        count[0] += 1
        y = right(*args)
        return y * (1 + 2 * torch.finfo(y.dtype).eps) if count[0] % 2 else y

    return wrong


@mutant("thread_counts")
def order_of_the_threads(right: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    def wrong(*args: Any) -> Tensor:
        y = right(*args)
        return y * (1 + 2 * torch.finfo(y.dtype).eps) if torch.get_num_threads() > 1 else y

    return wrong


def _flat_as(t: Tensor, offset: int) -> Tensor:
    """Memory of ``t`` from ``offset`` on, taken for a contiguous tensor; zeros where the storage ends."""
    flat = torch.empty(0, dtype=t.dtype).set_(t.untyped_storage())[offset : offset + t.numel()]
    return torch.cat([flat, flat.new_zeros(t.numel() - flat.numel())]).view(t.shape)


@mutant("input_views", passes=("fwd",))
def strides_ignored(right: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    def wrong(spec: Any, a: Tensor, *rest: Any) -> Tensor:
        return right(spec, a if spec.layout == "nhwc" else _flat_as(a, a.storage_offset()), *rest)

    return wrong


@mutant("upstream_views", passes=("bwd_x", "bwd_w"))
def gradient_strides_ignored(right: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    def wrong(spec: Any, g: Tensor, *rest: Any) -> Tensor:
        return right(spec, g if spec.layout == "nhwc" else _flat_as(g, g.storage_offset()), *rest)

    return wrong


@mutant("guards", "channel_blocks_of_one_tensor", passes=("fwd",))
def storage_offset_ignored(right: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    def wrong(spec: Any, a: Tensor, *rest: Any) -> Tensor:
        return right(spec, a.as_strided(a.shape, a.stride(), 0), *rest)

    return wrong


@mutant("weight_views", passes=MAPS)
def weight_offset_ignored(right: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    def wrong(spec: Any, a: Tensor, w: Tensor, *rest: Any) -> Tensor:
        return right(spec, a, w.as_strided(w.shape, w.stride(), 0), *rest)

    return wrong


@mutant("outputs_and_gradients")
def input_written(right: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    def wrong(spec: Any, a: Tensor, *rest: Any) -> Tensor:
        y = right(spec, a, *rest).clone()
        a.data.mul_(1.5)  # .data: the version counter would tell
        return y

    return wrong


@mutant("outputs_and_gradients", passes=MAPS)
def other_layout(right: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    def wrong(spec: Any, *rest: Any) -> Tensor:
        form = torch.contiguous_format if spec.layout == "nhwc" else torch.channels_last
        return right(spec, *rest).contiguous(memory_format=form)

    return wrong


@mutant("rounded_once")
def rounded_twice(right: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    """The sum in two parts, each rounded."""

    def wrong(spec: Any, a: Tensor, b: Tensor, *rest: Any) -> Tensor:
        mask = torch.arange(b.numel()).view(b.shape) % 2 == 0
        no_bias = (None, *rest[1:]) if name == "fwd" else rest
        return right(spec, a, torch.where(mask, b, 0), *rest) + right(spec, a, torch.where(mask, 0, b), *no_bias)

    return wrong


@mutant("nonfinite", passes=("fwd",))
def multiplied_by_zero(right: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    def wrong(spec: Any, a: Tensor, *rest: Any) -> Tensor:
        return right(spec, a, *rest) + 0 * a.sum()

    return wrong


@mutant("outputs_and_gradients", "loops", passes=("fwd",))
def bias_forgotten(right: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    def wrong(spec: Any, x: Tensor, w: Tensor, b: Tensor | None, *constants: Tensor) -> Tensor:
        return right(spec, x, w, None, *constants)

    return wrong


def substituted(target: Target, mutant: Mutant, name: str) -> Any:
    """Context: the target's backend is a right one but for the pass ``name``."""
    right = target.op.backends[right_name(target)].module
    functions = {p: getattr(right, p) for p in PASSES}
    functions[name] = mutant.change(functions[name], name)
    return planted(target, SimpleNamespace(why_not=lambda spec: None, **functions))


def right_name(target: Target) -> str:
    return "torch" if "torch" in target.op.backends else "reference"

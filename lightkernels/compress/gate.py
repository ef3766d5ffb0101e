"""The code that the gates of a layer spell: prefix codes, their neighbours, and the slope of the gates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Literal

from torch import Tensor

from lightkernels._core.spec import require

Doubled = Literal["first", "last"] | Sequence[str]


def bits_for(count: int) -> int:
    """Gates of a layer with that many operators: the logarithm to base 2, rounded up."""
    return (count - 1).bit_length()


def assign(names: Sequence[str], doubled: Doubled = "first") -> tuple[int, ...]:
    """Code to operator, for every code of ``bits_for(len(names))`` bits: a truncated binary prefix code.

    Where the number of operators is no power of two, the spare codes go to as many operators, which own two codes that
    differ in their last bit: the first or last ones, or those named.
    """
    count = len(names)
    spare = 2 ** bits_for(count) - count
    if doubled == "first":
        twice = set(names[:spare])
    elif doubled == "last":
        twice = set(names[count - spare :])
    else:
        twice = set(doubled)
        known = len(twice) == len(doubled) == spare and twice <= set(names)
        require(known, "Selection", "doubled", f"name {spare} of the operators", list(doubled))
    codes: list[int] = []
    for index, name in enumerate(names):
        hint = "an even number of operators with one code must stand before it."
        aligned = name not in twice or len(codes) % 2 == 0
        require(aligned, "Selection", "doubled", f"leave the codes of {name} neighbours", sorted(twice), hint=hint)
        codes += [index] * (2 if name in twice else 1)
    return tuple(codes)


@cache
def neighbours(codes: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """For each code, the operators of the codes that differ from it in one bit, the highest bit first."""
    bits = bits_for(len(codes))
    return tuple(tuple(codes[code ^ (1 << (bits - 1 - j))] for j in range(bits)) for code in range(len(codes)))


def nearest(codes: Sequence[int], index: int, code: int) -> int:
    """The code of operator `index` that differs from `code` in the fewest bits."""
    own = (c for c, operator in enumerate(codes) if operator == index)
    return min(own, key=lambda c: ((c ^ code).bit_count(), c))


def temperature(progress: float) -> tuple[float, float]:
    """``t`` and ``k`` of Equation 4: t from 0.1 to 10 in even ratios, k = max(1 / t, 1) / 2."""
    t = 0.1 * 100.0**progress
    return t, max(1.0 / t, 1.0) / 2


def slope(alpha: Tensor, t: float, k: float) -> Tensor:
    """``k t sech(t alpha)^2``, the derivative of Equation 3; not zero before |t alpha| is 52 in float32."""
    small = (-2.0 * (t * alpha).abs()).exp()
    return 4.0 * k * t * small / (1.0 + small).square()


def is_progress(value: float) -> bool:
    return math.isfinite(value) and 0.0 <= value <= 1.0

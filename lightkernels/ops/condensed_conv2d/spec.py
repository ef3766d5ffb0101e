"""Shapes and values of a condensed convolution: what every backend gets."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightkernels._core import backends
from lightkernels._core.spec import Layout, Maps, TensorMeta, layout_of, require

NAME = "condensed_conv2d"
ACTIVATIONS = ("relu", "hardswish")
DIFFERENTIABLE = 4


class Inputs(NamedTuple):
    """The tensors of a call, or their TensorMeta.

    x: [N, C, H, W]. weight: [Co, K], of x's dtype. scale, shift: [G K], float64 for a float64 x, else float32.
    index: int64 [G, K].
    """

    x: Any
    weight: Any
    scale: Any
    shift: Any
    index: Any


class Outputs(NamedTuple):
    y: Tensor


@dataclass(frozen=True)
class Spec(Maps):
    """One call; the index is data and comes with it."""

    n: int
    c: int
    h: int
    w: int
    c_out: int
    groups: int
    picked: int
    activation: str
    dtype: torch.dtype
    device: str
    layout: Layout
    x_stride: tuple[int, ...]
    exact_nonfinite: bool
    cache: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    tuned_by = ("n", "c", "h", "w", "c_out", "groups", "picked", "dtype", "layout")

    # What the machinery asks of an operator.
    any_layout = False
    needs_input = True
    inference = True
    definition_only = False

    @classmethod
    def of(cls, t: Inputs, *values: Any) -> Spec:
        (activation,) = values
        x: TensorMeta = t.x
        for name, one in t._asdict().items():
            require(one.device == x.device, NAME, name, f"be on x's device {x.device}", one)
        require(len(x.shape) == 4, NAME, "x", "have 4 dimensions [N, C, H, W]", x)
        n, c, h, w = x.shape
        require(len(t.index.shape) == 2, NAME, "index", "have shape [G, K], the K channels of each group", t.index)
        groups, picked = t.index.shape
        require(groups >= 1 and picked >= 1, NAME, "index", "name a channel", t.index)
        require(len(t.weight.shape) == 2, NAME, "weight", f"have shape [out channels, {picked}]", t.weight)
        c_out = t.weight.shape[0]
        require(t.weight.shape[1] == picked, NAME, "weight", f"have shape [out channels, {picked}]", t.weight)
        rule = f"have a multiple of {groups} rows, the groups of index"
        require(c_out % groups == 0 and c_out > 0, NAME, "weight", rule, t.weight)
        for name, one in (("scale", t.scale), ("shift", t.shift)):
            fits = len(one.shape) == 1 and one.shape[0] == groups * picked
            require(fits, NAME, name, f"have shape [{groups * picked}], a number for each entry of index", one)
        known = activation in ACTIVATIONS
        require(known, NAME, "activation", f"be one of {', '.join(map(repr, ACTIVATIONS))}", activation)
        return cls(
            n=n,
            c=c,
            h=h,
            w=w,
            c_out=c_out,
            groups=groups,
            picked=picked,
            activation=activation,
            dtype=x.dtype,
            device=x.device.type,
            layout=layout_of(x.shape, x.stride),
            x_stride=tuple(x.stride),
            exact_nonfinite=backends.exact(),
        )

    @cached_property
    def y_shape(self) -> tuple[int, ...]:
        return (self.n, self.c_out, self.h, self.w)

    @cached_property
    def empty(self) -> bool:
        return 0 in self.x_shape

    def kept(self) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
        """Outputs after the first: none."""
        return ()

    def flops(self) -> int:
        """2 x the multiply-adds of the grouped convolution."""
        return 2 * self.n * self.h * self.w * self.c_out * self.picked

    def bytes(self) -> int:
        """Least traffic of the forward: what is picked, the weights and the index read once, y written once."""
        picked = self.groups * self.picked
        values = self.n * self.h * self.w * (min(picked, self.c) + self.c_out) + self.c_out * self.picked
        return self.dtype.itemsize * values + 8 * picked + 2 * self.acc_dtype.itemsize * picked

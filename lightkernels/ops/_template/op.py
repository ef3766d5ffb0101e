"""A complete operator, to be copied: a depthwise 1x1 convolution. Contract and public function."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightkernels._core import backends
from lightkernels._core.op import BilinearOp
from lightkernels._core.spec import Layout, TensorMeta, dense_stride, fail_type, layout_of, require, require_tensor

from . import reference

NAME = __package__.rpartition(".")[2]


@dataclass(frozen=True)
class Spec:
    """Everything a backend may know of a call. Backends keep what they derive from it in ``cache``."""

    x_shape: tuple[int, ...]
    y_shape: tuple[int, ...]
    y_stride: tuple[int, ...]
    weight_shape: tuple[int, ...]
    layout: Layout
    dtype: torch.dtype
    device: str
    exact_nonfinite: bool
    cache: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    tuned_by = ("x_shape", "dtype", "layout")

    @classmethod
    def of(cls, x: TensorMeta, weight: TensorMeta | None, bias: TensorMeta | None) -> Spec:
        """The one validation of shapes and values; ``weight`` and ``bias`` are None where a gradient has none."""
        require(len(x.shape) == 4, NAME, "x", "have 4 dimensions [N, C, H, W]", x)
        c = x.shape[1]
        for name, t in (("weight", weight), ("bias", bias)):
            if t is not None:
                fits = len(t.shape) == 1 and t.shape[0] == c
                require(fits, NAME, name, f"have shape [{c}], the channels of x", t)
        layout = layout_of(x.shape, x.stride)
        shape = tuple(x.shape)
        stride = dense_stride(shape, layout)
        return cls(shape, shape, stride, (c,), layout, x.dtype, x.device.type, backends.exact())

    def flops(self) -> int:
        n, c, h, w = self.y_shape
        return 2 * n * c * h * w

    def bytes(self) -> int:
        return self.dtype.itemsize * (self.flops() + self.weight_shape[0])


def _normalise(x: Any, weights: Any, bias: Any) -> tuple[Any, ...]:
    """Types of the public call; returns the schema's values after the tensors (none here)."""
    require_tensor(NAME, "x", x)
    for name, t in (("weight", weights[0]), ("bias", bias)):
        if t is None:
            continue
        require_tensor(NAME, name, t)
        if t.dtype != x.dtype:
            fail_type(NAME, name, "have x's dtype", t)
    return ()


OP: BilinearOp[Spec] = BilinearOp(
    name=NAME,
    package=__package__,
    arguments="",
    spec=Spec,
    normalise=_normalise,
    definition=lambda x, weights, bias: reference.forward(x, weights[0], bias),
)


def function(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str | None = None) -> Tensor:
    """Scale every channel, and shift it.

    Equivalent to::

        x * weight[:, None, None] + bias[:, None, None]

    Args:
        x: [N, C, H, W], any floating type; NCHW or channels_last, kept in the output.
        weight: [C]. bias: [C] or None.
        backend: a name of :func:`lightkernels.use_backend`.

    Returns:
        [N, C, H, W] in x's dtype and layout.

    Raises:
        TypeError: an argument of the wrong type or dtype. ValueError: a shape that does not fit.
    """
    if backend is not None:
        backends.check_name(backend, NAME)
    return OP(x, (weight,), bias, (), backend)

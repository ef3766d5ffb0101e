"""The gradient rules of bilinear operators, written once, for every route, order and backend.

With ``y = fwd(x, w) + b``, cotangent ``g`` of ``y`` and the primitives' own outputs ``u``:

    fwd(x, w, b):  dx = bwd_x(g, w)    dw = bwd_w(g, x)    db = sum of g
    bwd_x(g, w):   dg = fwd(u, w)      dw = bwd_w(g, u)
    bwd_w(g, x):   dg = fwd(x, u)      dx = bwd_x(g, u)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.library import Library

from lightkernels._core import vmap
from lightkernels._core.spec import layout_of

if TYPE_CHECKING:
    from lightkernels._core.op import BilinearOp
    from lightkernels._core.plan import Plan

Grads = tuple[Tensor | None, ...]
_functorch = torch._C._are_functorch_transforms_active
_modes = torch._C._len_torch_dispatch_stack
# What ``torch.autograd.grad(..., is_grads_batched=True)`` and ``functional.jacobian(vectorize=True)`` hand over.
_legacy_batched = torch._C._functorch.is_legacy_batchedtensor


def channel_sum(g: Tensor) -> Tensor:
    return g.sum((0, 2, 3))


def _raw(g: Tensor) -> bool:
    """Whether a kernel may read the gradient itself, and nothing wants to see or transform the call."""
    return not (
        type(g) is not Tensor
        or _legacy_batched(g)
        or g.is_neg()
        or g._is_zerotensor()
        or _functorch()
        or _modes()
        or forward_ad._current_level >= 0
    )


def _last(x: Tensor) -> bool:
    return layout_of(x.shape, x.stride()) == "nhwc"


class Rules:
    """All autograd glue of one operator."""

    def __init__(self, op: BilinearOp[Any]) -> None:
        self.op = op
        self.eager = _eager(op)
        self.functions = {suffix: _function(self, suffix) for suffix in ("", "_bwd_x", "_bwd_w")}

    def register(self, library: Library) -> None:
        """The same rules for the dispatcher ops, so that they are differentiable wherever they are called."""
        for suffix in self.functions:
            torch.library.register_autograd(
                f"lightkernels::{self.op.name}{suffix}",
                self._op_backward(suffix),
                setup_context=self._op_setup(suffix),
                lib=library,
            )

    def split(self, suffix: str, args: tuple[Any, ...]) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        """The constants out of a dispatcher op's arguments, and the rest."""
        start = 2 if suffix == "_bwd_x" else 0
        stop = start + self.op.constants
        return args[start:stop], (*args[:start], *args[stop:])

    def join(self, suffix: str, constants: Sequence[Tensor], values: tuple[Any, ...]) -> tuple[Any, ...]:
        """The inverse of ``split``."""
        start = 2 if suffix == "_bwd_x" else 0
        return (*values[:start], *constants, *values[start:])

    def _op_setup(self, suffix: str) -> Callable[..., None]:
        count = 3 if suffix == "" else 2

        def setup_context(
            ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Tensor
        ) -> None:
            constants, ctx.values = self.split(suffix, inputs[count:])
            ctx.save_for_backward(*inputs[:2], *constants)
            ctx.backend = keyword_only_inputs["backend"]

        return setup_context

    def _op_backward(self, suffix: str) -> Callable[..., Grads]:
        def backward(ctx: Any, u: Tensor) -> Grads:
            a, b, *constants = ctx.saved_tensors
            args = self.join(suffix, constants, ctx.values)
            grads = self.vjp(suffix, (a, b), args, ctx.backend, u, ctx.needs_input_grad)
            return (*grads, *(None for _ in args))

        return backward

    def vjp(
        self, suffix: str, t: tuple[Tensor, ...], args: tuple[Any, ...], backend: str | None, u: Tensor, need: Any
    ) -> Grads:
        """Gradients of a primitive's tensor inputs; None where not needed."""
        op = self.op
        if suffix == "":
            x, w = t
            return (
                op.bwd_x(u, w, x.shape, _last(x), args, backend) if need[0] else None,
                op.bwd_w(u, x, args, backend) if need[1] else None,
                channel_sum(u) if need[2] else None,
            )
        if suffix == "_bwd_x":
            g, w = t
            _, _, *rest = args
            return (
                op.fwd(u, w, None, tuple(rest), backend) if need[0] else None,
                op.bwd_w(g, u, tuple(rest), backend) if need[1] else None,
            )
        g, x = t
        return (
            op.fwd(x, u, None, args, backend) if need[0] else None,
            op.bwd_x(g, u, x.shape, _last(x), args, backend) if need[1] else None,
        )

    def jvp(
        self,
        suffix: str,
        t: tuple[Tensor, ...],
        args: tuple[Any, ...],
        backend: str | None,
        tangents: tuple[Tensor | None, ...],
    ) -> Tensor:
        """Directional derivative: the sum of the primitive with each input replaced by its tangent."""
        a, b = t
        da, db, *extra = tangents
        terms: list[Tensor] = []
        for left, right in ((da, b), (a, db)):
            if left is not None and right is not None:
                tensors = (left, right, None) if suffix == "" else (left, right)
                terms.append(self.op._primitive(suffix, tensors, args, backend))
        total = sum(terms[1:], terms[0]) if terms else torch.zeros_like(self._value(suffix, t, args, backend))
        if extra and extra[0] is not None:
            total = total + extra[0][None, :, None, None]
        return total

    def _value(self, suffix: str, t: tuple[Tensor, ...], args: tuple[Any, ...], backend: str | None) -> Tensor:
        tensors = (*t, None) if suffix == "" else t
        return self.op._primitive(suffix, tensors, args, backend)


def _eager(op: BilinearOp[Any]) -> Any:
    """The fast route of plain eager tensors: a ctx-style Function straight into the backend's functions."""

    class Eager(Function):
        @staticmethod
        def forward(
            ctx: Any, plan: Plan, x: Tensor, bias: Tensor | None, constants: tuple[Tensor, ...], *weights: Tensor
        ) -> Tensor:
            ctx.save_for_backward(x, *weights, *constants)
            ctx.plan = plan
            packed = weights[0] if len(weights) == 1 else op.pack(weights)
            return plan.fwd(plan.spec, x, packed, bias, *constants)

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Grads:
            x, *weights = ctx.saved_tensors
            constants = [weights.pop() for _ in range(op.constants)][::-1]
            plan = ctx.plan
            need = ctx.needs_input_grad
            gx = gw = None
            if torch.is_grad_enabled() or not _raw(g):
                packed = op.pack(weights)
                args = (*constants, *plan.args)
                if need[1]:
                    gx = op.bwd_x(g, packed, x.shape, _last(x), args, plan.names["bwd_x"])
                if any(need[4:]):
                    gw = op.bwd_w(g, x, args, plan.names["bwd_w"])
            else:
                if need[1]:
                    packed = weights[0] if len(weights) == 1 else op.pack(weights)
                    gx = plan.bwd_x(plan.spec, g, packed, *constants)
                if any(need[4:]):
                    gw = plan.bwd_w(plan.spec, g, x, *constants)
            gb = channel_sum(g) if need[2] else None
            return (None, gx, gb, None, *((None,) * len(weights) if gw is None else op.unpack(gw, weights)))

    Eager.__name__ = Eager.__qualname__ = f"lightkernels_{op.name}"
    # Function.apply less its care for torch.func, whose tensors do not come here.
    return super(Function, Eager).apply


def _function(rules: Rules, suffix: str) -> Any:
    """The route of functorch and forward AD: a setup_context Function with its own vmap and jvp."""
    op = rules.op
    count = 3 if suffix == "" else 2

    class Transformed(Function):
        @staticmethod
        def forward(*inputs: Any) -> Tensor:
            *tensors, values, backend = inputs
            args = rules.join(suffix, tensors[count:], values)
            out: Tensor = op.ops[suffix](*tensors[:count], *args, backend=backend)
            return out

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            *tensors, ctx.values, ctx.backend = inputs
            kept = (*tensors[:2], *tensors[count:])
            ctx.save_for_backward(*kept)
            ctx.save_for_forward(*kept)

        @staticmethod
        def backward(ctx: Any, u: Tensor) -> Grads:
            a, b, *constants = ctx.saved_tensors
            args = rules.join(suffix, constants, ctx.values)
            grads = rules.vjp(suffix, (a, b), args, ctx.backend, u, ctx.needs_input_grad)
            return (*grads, *(None for _ in constants), None, None)

        @staticmethod
        def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
            a, b, *constants = ctx.saved_tensors
            args = rules.join(suffix, constants, ctx.values)
            return rules.jvp(suffix, (a, b), args, ctx.backend, tangents[:count])

        @staticmethod
        def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
            *tensors, values, backend = inputs
            constants = vmap.fronted(info.batch_size, in_dims[count:-2], tensors[count:])
            args = rules.join(suffix, constants, values)
            dims = in_dims[:count]
            # A batch of constants is a batch of weights: both become channels.
            mixed = any(dim is not None for dim in in_dims[count:-2])
            return vmap.rule(op, suffix, info.batch_size, dims, tuple(tensors[:count]), args, backend, mixed), 0

    Transformed.__name__ = Transformed.__qualname__ = f"lightkernels_{op.name}{suffix}_transformed"
    return Transformed

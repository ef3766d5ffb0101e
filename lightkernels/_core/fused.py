"""An operator that is no convolution: several inputs, declared outputs of which the first is differentiable.

Such an operator says what it keeps for its backward: its outputs after the first (statistics, intermediate values) and
the inputs that cannot be had from them. Backends give ``fwd``, ``bwd`` and, for calls without gradients, ``infer``.
Derivatives of any other kind (a second order, forward mode, torch.func) are taken of the definition.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.utils.flop_counter import register_flop_formula

from lightkernels._core import backends as _backends
from lightkernels._core.autograd import _legacy_batched
from lightkernels._core.op import _PLAIN, _TAGS, LIBRARY, _hashable, _wrapped
from lightkernels._core.plan import Memo
from lightkernels._core.spec import TensorMeta
from lightkernels._core.tracing import state as _tracing

_functorch = torch._C._are_functorch_transforms_active
_modes = torch._C._len_torch_dispatch_stack
_AUTOGRAD_KEYS = [
    getattr(torch._C.DispatchKey, name) for name in ("AutogradFunctionality", "AutogradOther", "ADInplaceOrView")
]
Grads = tuple[Tensor | None, ...]


class FusedPlan:
    """A validated call, the function of each pass, and the name of the backend that has the backward."""

    __slots__ = ("bwd", "fwd", "infer", "name", "spec", "values")

    def __init__(self, spec: Any, values: tuple[Any, ...], chosen: Mapping[str, _backends.Choice]) -> None:
        self.spec, self.values = spec, values
        self.name = chosen["bwd"].backend.name
        self.fwd: Callable[..., Any] = chosen["fwd"].backend.function("fwd")
        self.bwd: Callable[..., Grads] = chosen["bwd"].backend.function("bwd")
        self.infer: Callable[..., Tensor] | None = getattr(chosen["fwd"].backend.module, "infer", None)


class FusedOp:
    """An operator from its contract: dispatcher ops, fakes, FLOP formulas, routes and gradients.

    Args:
        name, package: the operator's name, which is its folder's, and its package.
        inputs, outputs: NamedTuple classes. Inputs with a default may be None. The first output is the result.
        differentiable: how many of the inputs, the first ones, have gradients.
        arguments: schema text of the values after the tensors.
        spec: the Spec class; ``Spec.of(inputs as TensorMeta, *values)`` is the one validation. It has ``y_shape``,
            ``y_stride``, ``dense_x_stride``, ``layout``, ``flops()``, ``bytes()``,
            ``kept()`` (shapes and dtypes of the outputs after the first), ``needs_input`` (whether the first input is
            kept for the backward), ``any_layout`` (whether backends read the result's gradient in either layout),
            ``inference`` (whether ``infer`` may run it) and ``definition_only`` (whether its
            gradients are those of the definition).
        definition: ``(spec, inputs) -> outputs``, differentiable in every way.
        restore: ``(spec, y) -> x``, where the first input is not kept; differentiable.
    """

    bilinear = False
    kinds = ("fwd", "bwd")

    def __init__(
        self,
        name: str,
        package: str,
        inputs: Any,
        outputs: Any,
        differentiable: int,
        arguments: str,
        spec: Any,
        definition: Callable[[Any, Any], Any],
        restore: Callable[[Any, Tensor], Tensor],
    ) -> None:
        self.name, self.package, self.spec = name, package, spec
        self.inputs, self.outputs, self.differentiable = inputs, outputs, differentiable
        self.definition, self.restore = definition, restore
        self.backends = _backends.discover(package)
        self._memo = Memo()
        fields, optional = inputs._fields, inputs._field_defaults
        tensors = [f"Tensor{'?' if f in optional else ''} {f}" for f in fields]
        kept = [f"Tensor? {fields[0]}", *tensors[1:], *(f"Tensor {f}" for f in outputs._fields)]
        tail = f"{arguments}, *, str? backend=None) -> ("
        self._schemas = {
            "": f"{name}({', '.join(tensors)}, {tail}{', '.join(['Tensor'] * len(outputs._fields))})",
            "_bwd": f"{name}_bwd(Tensor g, {', '.join(kept)}, SymInt[] x_shape, bool channels_last, {tail}"
            f"{', '.join(['Tensor'] * differentiable)})",
        }
        impls: dict[str, Any] = {"": self._run_fwd, "_bwd": self._run_bwd}
        fakes: dict[str, Any] = {"": self._fake_fwd, "_bwd": self._fake_bwd}
        flops: dict[str, Any] = {"": self._flops_fwd, "_bwd": self._flops_bwd}
        setups: dict[str, Any] = {"": self._setup_fwd, "_bwd": self._setup_bwd}
        gradients: dict[str, Any] = {"": self._backward_fwd, "_bwd": self._backward_bwd}
        self.ops = {}
        for suffix, schema in self._schemas.items():
            qualified = f"lightkernels::{name}{suffix}"
            LIBRARY.define(schema, tags=_TAGS)
            LIBRARY.impl(name + suffix, impls[suffix], "CompositeExplicitAutograd")
            torch.library.register_fake(qualified, fakes[suffix], lib=LIBRARY)
            packet = getattr(torch.ops.lightkernels, name + suffix)
            self.ops[suffix] = packet.default
            register_flop_formula(packet)(flops[suffix])
            torch.library.register_autograd(qualified, gradients[suffix], setup_context=setups[suffix], lib=LIBRARY)
        self._eager = _eager(self)

    # The routes of a call.

    def __call__(self, t: Any, values: tuple[Any, ...], backend: str | None) -> Any:
        """``t`` of the inputs class, values in the schema's form; returns the outputs class."""
        if torch.compiler.is_compiling() or _functorch() or _modes() or forward_ad._current_level >= 0:
            return self._through_op(t, values, backend)
        if _tracing() is not None:
            return self._through_op(t, values, backend)
        x, grad = t[0], False
        for one in t:
            if one is None:
                continue
            if type(one) not in _PLAIN or one.is_neg() or one._is_zerotensor() or _wrapped(one):
                return self._through_op(t, values, backend)
            grad = grad or one.requires_grad
        if x.layout is not torch.strided or x.device.type not in ("cpu", "cuda"):
            return self._through_op(t, values, backend)
        plan = self._plan_of(t, values, backend)
        if grad and torch.is_grad_enabled():
            return self.outputs(*self._eager(plan, *t))
        return self._run(plan, t)

    def forget(self) -> None:
        """Drop all plans, so that the next call chooses anew."""
        self._memo.clear()

    def _through_op(self, t: Any, values: tuple[Any, ...], backend: str | None) -> Any:
        if _functorch() or forward_ad._current_level >= 0:
            return self.definition(self.spec_of(t, values), t)
        return self.outputs(*_several(self.ops[""](*t, *values, backend=backend)))

    # Behind the op: validation and choice, then the backend.

    def spec_of(self, t: Any, values: tuple[Any, ...]) -> Any:
        metas = (TensorMeta.of(one) if isinstance(one, Tensor) else one for one in t)
        return self.spec.of(self.inputs(*metas), *values)

    def called(self, args: tuple[Any, ...]) -> Any:
        """The Spec of a dispatcher call."""
        t, values = self._split(args)
        return self.spec_of(t, values)

    def _split(self, args: Sequence[Any]) -> tuple[Any, tuple[Any, ...]]:
        count = len(self.inputs._fields)
        return self.inputs(*args[:count]), tuple(args[count:])

    def _plan_of(self, t: Any, values: tuple[Any, ...], backend: str | None) -> FusedPlan:
        x = t[0]
        key = _hashable(
            [values, backend, _backends._forced.get(), _backends._exact.get(), x.stride()]
            + [None if one is None else (one.shape, one.dtype, one.device) for one in t]
        )
        plan: Any = self._memo.get(key)
        if plan is None:
            spec = self.spec_of(t, values)
            chosen = _backends.choose_each(self.name, self.backends, spec, _backends.wanted(backend), self.kinds)
            plan = self._memo.put(key, FusedPlan(spec, values, chosen))  # type: ignore[arg-type]
        return plan  # type: ignore[no-any-return]

    def _run(self, plan: FusedPlan, t: Any) -> Any:
        """Without gradients."""
        if plan.infer is not None and plan.spec.inference:
            y = plan.infer(plan.spec, t)
            return self.outputs(y, *(y.new_empty(s, dtype=d) for s, d in plan.spec.kept()))
        return plan.fwd(plan.spec, t)

    def _run_fwd(self, *args: Any, backend: str | None = None) -> Any:
        t, values = self._split(args)
        return _bare(self._run(self._plan_of(t, values, backend), t))

    def _fake_fwd(self, *args: Any, backend: str | None = None) -> Any:
        spec, x = self.called(args), args[0]
        rest = (x.new_empty(shape, dtype=dtype) for shape, dtype in spec.kept())
        return _bare((x.new_empty_strided(spec.y_shape, spec.y_stride), *rest))

    # The backward. Its dispatcher op has what the forward kept; values follow the input's shape and layout.

    def gradients(self, spec: Any, values: tuple[Any, ...], g: Tensor, t: Any, out: Any, backend: str | None) -> Grads:
        """Of the differentiable inputs; differentiable itself where gradients are on."""
        plain = not (_functorch() or _legacy_batched(g) or forward_ad._current_level >= 0)
        if torch.is_grad_enabled() or not plain or spec.definition_only:
            return self._of_definition(spec, g, t, out)
        last = spec.layout == "nhwc"
        grads = self.ops["_bwd"](g, *t, *out, list(spec.x_shape), last, *values, backend=backend)
        return tuple(None if i and t[i] is None else grad for i, grad in enumerate(grads))

    def _of_definition(self, spec: Any, g: Tensor, t: Any, out: Any) -> Grads:
        graph = torch.is_grad_enabled()
        with torch.enable_grad():
            if t[0] is None:
                t = t._replace(**{t._fields[0]: self.restore(spec, out[0])})
            # Aliases: one input may be made of another, and its gradient is not to go through that one.
            some = [one is not None for one in t[: self.differentiable]]
            aliases = [_alias(one) if i < len(some) and some[i] else one for i, one in enumerate(t)]
            y = self.definition(spec, self.inputs(*aliases))[0]
            wanted = [one for one, is_there in zip(aliases, some, strict=False) if is_there]
            found = iter(torch.autograd.grad(y, wanted, g, create_graph=graph, allow_unused=True))
        return tuple(next(found) if is_there else None for is_there in some)

    def _dense(self, spec: Any, g: Tensor) -> Tensor:
        other = spec.any_layout and (g.is_contiguous() or g.is_contiguous(memory_format=torch.channels_last))
        fits = other or g.stride() == spec.y_stride
        if fits and not g.is_neg() and not g._is_zerotensor():
            return g
        return g.new_empty_strided(spec.y_shape, spec.y_stride).copy_(g)

    def _split_bwd(self, args: Sequence[Any]) -> tuple[Tensor, Any, Any, Any, tuple[Any, ...]]:
        """g, inputs, outputs, the Spec, and the values of the forward."""
        ends = 1 + len(self.inputs._fields)
        t, out = self.inputs(*args[1:ends]), self.outputs(*args[ends : ends + len(self.outputs._fields)])
        shape, last, *values = args[ends + len(out) :]
        meta = TensorMeta.dense(tuple(shape), last, out[0])
        return args[0], t, out, self.spec_of((meta, *t[1:]), tuple(values)), tuple(values)

    def _run_bwd(self, *args: Any, backend: str | None = None) -> tuple[Tensor, ...]:
        g, t, out, spec, _ = self._split_bwd(args)
        choice = _backends.choose(self.name, self.backends, spec, _backends.wanted(backend), "bwd")
        grads = choice.backend.function("bwd")(spec, self._dense(spec, g), t, out)
        return tuple(g.new_empty(0) if one is None else one for one in grads)

    def _fake_bwd(self, *args: Any, backend: str | None = None) -> tuple[Tensor, ...]:
        g, t, _, spec, _ = self._split_bwd(args)
        rest = t[1 : self.differentiable]
        gx = g.new_empty_strided(spec.x_shape, spec.dense_x_stride)
        return (gx, *(g.new_empty(0) if one is None else torch.empty_like(one) for one in rest))

    # Autograd of the dispatcher ops.

    def _setup_fwd(self, ctx: Any, inputs: Any, keyword_only_inputs: Any, output: Any) -> None:
        t, ctx.values = self._split(inputs)
        ctx.plan_spec, ctx.backend = self.spec_of(t, ctx.values), keyword_only_inputs["backend"]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*self.kept(ctx.plan_spec, t), *_several(output))

    def _backward_fwd(self, ctx: Any, g: Tensor | None, *_: Any) -> Grads:
        nothing: Grads = (None,) * (len(self.inputs._fields) + len(ctx.values))
        if g is None:
            return nothing
        t, out = self.saved(ctx.saved_tensors)
        grads = self.gradients(ctx.plan_spec, ctx.values, g, t, out, ctx.backend)
        return (*grads, *nothing[len(grads) :])

    def _setup_bwd(self, ctx: Any, inputs: Any, keyword_only_inputs: Any, output: Any) -> None:
        g, t, out, ctx.plan_spec, _ = self._split_bwd(inputs)
        ctx.others = len(inputs) - 1 - len(t) - 1
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(g, *t, out[0])

    def _backward_bwd(self, ctx: Any, *upstream: Tensor | None) -> Grads:
        """Through the definition's gradients; what follows from the inputs, as statistics do, is constant."""
        g, *rest, y = ctx.saved_tensors
        t, graph = self.inputs(*rest), torch.is_grad_enabled()
        with torch.enable_grad():
            g, y = _alias(g), _alias(y)
            t = self.inputs(*(None if one is None else _alias(one) for one in t))
            full = t if t[0] is not None else t._replace(**{t._fields[0]: self.restore(ctx.plan_spec, y)})
            out = self.outputs(y, *[None] * (len(self.outputs._fields) - 1))
            grads = self._of_definition(ctx.plan_spec, g, full, out)
            pairs = [(a, u) for a, u in zip(grads, upstream, strict=True) if a is not None and u is not None]
            if not pairs:
                return (None,) * int(2 + len(t) + ctx.others)
            wrt = [one for one in (g, *t[: self.differentiable], y) if one is not None]
            found = iter(
                torch.autograd.grad(
                    [a for a, _ in pairs], wrt, [u for _, u in pairs], create_graph=graph, allow_unused=True
                )
            )
        first: list[Tensor | None] = [
            next(found) if one is not None else None for one in (g, *t[: self.differentiable])
        ]
        constant = [None] * (len(t) - self.differentiable)
        return (*first, *constant, next(found), *[None] * ctx.others)

    def kept(self, spec: Any, t: Any) -> Any:
        return t if spec.needs_input else t._replace(**{t._fields[0]: None})

    def saved(self, tensors: Sequence[Tensor | None]) -> tuple[Any, Any]:
        count = len(self.inputs._fields)
        return self.inputs(*tensors[:count]), self.outputs(*tensors[count:])

    # For programs of aten alone, and for torch's FLOP counter.

    def decompositions(self) -> dict[Any, Callable[..., Any]]:
        """The ops as aten calls, for ``ExportedProgram.run_decompositions`` (add them to its table)."""
        return {self.ops[""]: self._aten_fwd, self.ops["_bwd"]: self._aten_bwd}

    def _aten_fwd(self, *args: Any, backend: str | None = None) -> Any:
        t, values = self._split(args)
        return _bare(self.backends["reference"].function("fwd")(self.spec_of(t, values), t))

    def _aten_bwd(self, *args: Any, backend: str | None = None) -> tuple[Tensor, ...]:
        g, t, out, spec, _ = self._split_bwd(args)
        grads = self.backends["reference"].function("bwd")(spec, g, t, out)
        return tuple(g.new_empty(0) if one is None else one for one in grads)

    def _flops(self, shapes: Sequence[Any], values: tuple[Any, ...]) -> int:
        def free(shape: Any) -> TensorMeta | None:
            if shape is None:
                return None
            return TensorMeta(tuple(shape), (0,) * len(shape), torch.float32, torch.device("meta"))

        flops: int = self.spec.of(self.inputs(*map(free, shapes)), *values).flops()
        return flops

    def _flops_fwd(self, *args: Any, out_shape: Any = None, **_: Any) -> int:
        t, values = self._split(args)
        return self._flops(t, values)

    def _flops_bwd(self, *args: Any, out_shape: Any = None, **_: Any) -> int:
        ends = 1 + len(self.inputs._fields)
        shape, _last, *values = args[ends + len(self.outputs._fields) :]
        return 2 * self._flops((shape, *args[2:ends]), tuple(values))


@contextlib.contextmanager
def recording() -> Iterator[None]:
    """Autograd on, also inside a dispatcher op, below which torch keeps it off."""
    with torch._C._PreserveDispatchKeyGuard(), torch.enable_grad():
        for key in _AUTOGRAD_KEYS:
            torch._C._dispatch_tls_set_dispatch_key_excluded(key, False)
        yield


def _bare(out: Sequence[Tensor]) -> Any:
    """What a dispatcher op returns: a single result by itself."""
    return out[0] if len(out) == 1 else tuple(out)


def _several(out: Any) -> Sequence[Tensor]:
    """The inverse of ``_bare``."""
    return (out,) if isinstance(out, Tensor) else out


def _alias(t: Tensor) -> Tensor:
    """The same values, differentiated in by themselves."""
    if t.is_floating_point():
        return t.view_as(t) if t.requires_grad else t.detach().requires_grad_()
    return t


def _eager(op: FusedOp) -> Any:
    """The route of plain eager tensors: straight into the backend's functions."""
    ends = len(op.outputs._fields)

    class Eager(Function):
        @staticmethod
        def forward(ctx: Any, plan: FusedPlan, *tensors: Tensor | None) -> tuple[Tensor, ...]:
            t = op.inputs(*tensors)
            out = plan.fwd(plan.spec, t)
            ctx.plan = plan
            ctx.set_materialize_grads(False)
            ctx.mark_non_differentiable(*out[1:])
            ctx.save_for_backward(*op.kept(plan.spec, t), *out)
            return tuple(out)

        @staticmethod
        def backward(ctx: Any, g: Tensor | None, *_: Any) -> Grads:
            plan = ctx.plan
            nothing: Grads = (None,) * (1 + len(op.inputs._fields))
            if g is None:
                return nothing
            t, out = op.saved(ctx.saved_tensors)
            assert len(out) == ends
            if (
                torch.is_grad_enabled()
                or type(g) is not Tensor
                or _modes()
                or not _plain(g)
                or plan.spec.definition_only
            ):
                grads = op.gradients(plan.spec, plan.values, g, t, out, plan.name)
            else:
                grads = plan.bwd(plan.spec, op._dense(plan.spec, g), t, out)
            return (None, *grads, *nothing[1 + len(grads) :])

    Eager.__name__ = Eager.__qualname__ = f"lightkernels_{op.name}"
    return super(Function, Eager).apply


def _plain(g: Tensor) -> bool:
    return not (_legacy_batched(g) or _functorch() or forward_ad._current_level >= 0)

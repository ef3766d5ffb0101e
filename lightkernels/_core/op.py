"""A bilinear operator from its contract: dispatcher ops, fakes, FLOP formulas and the routes of a call.

A convolution is linear in its input and in its weight, so three primitives are closed under differentiation:
``fwd(x, w)``, ``bwd_x(g, w)`` and ``bwd_w(g, x)``. ``autograd.py`` has their three rules; this file has the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.library import Library
from torch.utils.flop_counter import register_flop_formula

from lightkernels._core import backends as _backends
from lightkernels._core.autograd import Rules
from lightkernels._core.plan import Memo, Plan
from lightkernels._core.spec import TensorMeta, require
from lightkernels._core.tracing import state as _tracing
from lightkernels._core.tracing import untraced
from lightkernels._core.vmap import Folding

LIBRARY = Library("lightkernels", "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)
_PLAIN = (Tensor, torch.nn.Parameter)
_STRIDED = torch.strided
_RAW_DEVICES = ("cpu", "cuda")
_functorch = torch._C._are_functorch_transforms_active
# What torch.func leaves behind where a tensor of its own escapes from a transform: it has no memory.
_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
_modes = torch._C._len_torch_dispatch_stack
_autocast = torch._C._is_any_autocast_enabled
_grad_enabled = torch.is_grad_enabled
_forced = _backends._forced.get
_exact = _backends._exact.get


class SpecBase(Protocol):
    """What the machinery asks of an operator's Spec, a frozen dataclass.

    ``tuned_by`` names the attributes by which ``tuned/`` tells calls apart: numbers by logarithm, others if equal.
    """

    @property
    def tuned_by(self) -> tuple[str, ...]: ...
    @property
    def layout(self) -> str: ...
    @property
    def x_shape(self) -> tuple[int, ...]: ...
    @property
    def y_shape(self) -> tuple[int, ...]: ...
    @property
    def y_stride(self) -> tuple[int, ...]: ...
    @property
    def weight_shape(self) -> tuple[int, ...]: ...
    def flops(self) -> int: ...
    def bytes(self) -> int: ...
    @classmethod
    def of(cls, x: TensorMeta, weight: TensorMeta | None, bias: TensorMeta | None, *args: Any) -> Any: ...


S = TypeVar("S", bound=SpecBase)


def _only(weights: Sequence[Tensor]) -> Tensor:
    return weights[0]


def _shape(weights: Sequence[Tensor]) -> Sequence[int]:
    return weights[0].shape


def _alone(packed: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (packed,)


class BilinearOp(Generic[S]):
    """An operator ``y = f(x, weight) + bias`` with its gradients, on every backend found in its folder.

    Args:
        name: the operator's name, which is its folder's.
        package: the operator's package, where backends are looked for.
        arguments: schema text of the values after the tensors, e.g. ``"int[] kernel_sizes, SymInt[2] stride"``.
        spec: the Spec class; ``Spec.of`` is the one validation.
        normalise: ``(x, weights, bias, *raw) -> args`` of the public call; raises TypeError for wrong types.
        pack, unpack, packed: from the public weights to the one packed weight, its gradient back, and its shape; by
            default there is one weight, and it is the packed one. A single weight holds the packed one's elements in
            their order, and eager calls hand it to the backend in its own shape.
        folding: for vmap over weights.
        definition: the reference as ``(x, weights, bias, *raw) -> y``, for functorch inside torch.compile, whose
            tracer takes no Function with a jvp.
        constants: how many of ``arguments``, the first ones, are tensors that nothing is differentiated in. Backends
            get them after their other tensors, ``Spec.of`` gets their TensorMeta, ``normalise`` and ``definition``
            get them before the raw values.
    """

    bilinear = True
    kinds = ("fwd", "bwd_x", "bwd_w")

    def __init__(
        self,
        name: str,
        package: str,
        arguments: str,
        spec: type[S],
        normalise: Callable[..., tuple[Any, ...]],
        definition: Callable[..., Tensor],
        pack: Callable[[Sequence[Tensor]], Tensor] = _only,
        unpack: Callable[[Tensor, Sequence[Tensor]], tuple[Tensor, ...]] = _alone,
        packed: Callable[[Sequence[Tensor]], Sequence[int]] = _shape,
        folding: Folding = Folding(),  # noqa: B008
        constants: int = 0,
    ) -> None:
        self.name, self.package, self.spec = name, package, spec
        self.normalise, self.pack, self.unpack = normalise, pack, unpack
        self.packed, self.folding = packed, folding
        self.definition, self.constants = definition, constants
        self.backends = _backends.discover(package)
        self._memo = Memo()
        tail = f"{arguments + ', ' if arguments else ''}*, str? backend=None) -> Tensor"
        self._schemas = {
            "": f"{name}(Tensor x, Tensor weight, Tensor? bias, {tail}",
            "_bwd_x": f"{name}_bwd_x(Tensor g, Tensor weight, SymInt[] x_shape, bool channels_last, {tail}",
            "_bwd_w": f"{name}_bwd_w(Tensor g, Tensor x, {tail}",
        }
        impls: dict[str, Callable[..., Tensor]] = {
            "": self._run_fwd,
            "_bwd_x": self._run_bwd_x,
            "_bwd_w": self._run_bwd_w,
        }
        fakes: dict[str, Callable[..., Tensor]] = {
            "": self._fake_fwd,
            "_bwd_x": self._fake_bwd_x,
            "_bwd_w": self._fake_bwd_w,
        }
        flops: dict[str, Callable[..., int]] = {
            "": self._flops_fwd,
            "_bwd_x": self._flops_bwd_x,
            "_bwd_w": self._flops_bwd_w,
        }
        for suffix, schema in self._schemas.items():
            LIBRARY.define(schema, tags=_TAGS)
            LIBRARY.impl(name + suffix, impls[suffix], "CompositeExplicitAutograd")
            torch.library.register_fake(f"lightkernels::{name}{suffix}", fakes[suffix], lib=LIBRARY)
        packets = {suffix: getattr(torch.ops.lightkernels, name + suffix) for suffix in self._schemas}
        self.ops = {suffix: packet.default for suffix, packet in packets.items()}
        for suffix, packet in packets.items():
            register_flop_formula(packet)(flops[suffix])
        self.rules = Rules(self)
        self.rules.register(LIBRARY)

    # The routes of a call.

    def __call__(
        self,
        x: Tensor,
        weights: Sequence[Tensor],
        bias: Tensor | None,
        raw: tuple[Any, ...],
        backend: str | None,
        constants: tuple[Tensor, ...] = (),
    ) -> Tensor:
        """The public function's call: raw values as the user gave them, weights unpacked."""
        if torch.compiler.is_compiling() or _functorch() or _modes() or forward_ad._current_level >= 0:
            return self._through_op(x, weights, bias, raw, backend, constants)
        if _tracing() is not None:
            return self._traced(x, weights, bias, raw, backend, constants)
        if type(x) not in _PLAIN or x.layout is not _STRIDED or not ((cpu := x.is_cpu) or x.is_cuda):
            return self._through_op(x, weights, bias, raw, backend, constants)
        # Tensors of x's dtype and device, as all should be, put only their shapes into the key.
        dtype, device, grad = x.dtype, None if cpu else x.device, False
        key: list[Any] = [raw, backend, _forced(), _exact(), x.stride(), dtype, device, bias is None]
        for t in (x, *weights) if bias is None else (x, *weights, bias):
            if type(t) not in _PLAIN or t.layout is not _STRIDED or t.is_neg() or t._is_zerotensor() or _wrapped(t):
                return self._through_op(x, weights, bias, raw, backend, constants)
            grad = grad or t.requires_grad
            key.append(t.shape)
            if t.dtype is not dtype or not (t.is_cpu if cpu else t.device == device):
                key.append((t.dtype, t.device))
        for t in constants:
            if type(t) not in _PLAIN:
                return self._through_op(x, weights, bias, raw, backend, constants)
            key.append((t.shape, t.dtype, t.device))
        if _autocast() and torch.is_autocast_enabled(kind := x.device.type):
            return self._autocast(kind, x, weights, bias, raw, backend, constants)
        hashable: Hashable = tuple(key)
        try:
            plan = self._memo.get(hashable)
        except TypeError:
            plan = self._memo.get(hashable := _freeze(hashable))
        if plan is None:
            args = (*constants, *self.normalise(x, weights, bias, *constants, *raw))
            plan = self._plan(hashable, x, self._packed_meta(weights), bias, args, backend)
        if grad and _grad_enabled():
            out: Tensor = self.rules.eager(plan, x, bias, constants, *weights)
            return out
        packed = weights[0] if len(weights) == 1 else tuple(weights) if plan.apart else self.pack(weights)
        return plan.fwd(plan.spec, x, packed, bias, *constants)

    def forget(self) -> None:
        """Drop all plans, so that the next call chooses anew."""
        self._memo.clear()

    def _through_op(
        self,
        x: Tensor,
        weights: Sequence[Tensor],
        bias: Tensor | None,
        raw: tuple[Any, ...],
        backend: str | None,
        constants: tuple[Tensor, ...],
    ) -> Tensor:
        kind = x.device.type
        if kind in _RAW_DEVICES and torch.is_autocast_enabled(kind):
            return self._autocast(kind, x, weights, bias, raw, backend, constants)
        args = (*constants, *self.normalise(x, weights, bias, *constants, *raw))
        if torch.compiler.is_compiling() and _functorch():
            return self.definition(x, weights, bias, *constants, *raw)
        return self.fwd(x, self.pack(weights), bias, args, backend)

    def _traced(
        self,
        x: Tensor,
        weights: Sequence[Tensor],
        bias: Tensor | None,
        raw: tuple[Any, ...],
        backend: str | None,
        constants: tuple[Tensor, ...],
    ) -> Tensor:
        if torch.is_autocast_enabled(kind := x.device.type):
            return self._autocast(kind, x, weights, bias, raw, backend, constants)
        with untraced():
            args = (*constants, *self.normalise(x, weights, bias, *constants, *raw))
        result: Tensor = self.ops[""](x, self.pack(weights), bias, *args, backend=backend)
        return result

    def _autocast(
        self,
        kind: str,
        x: Tensor,
        weights: Sequence[Tensor],
        bias: Tensor | None,
        raw: tuple[Any, ...],
        backend: str | None,
        constants: tuple[Tensor, ...],
    ) -> Tensor:
        dtype = torch.get_autocast_dtype(kind)

        def cast(t: Any) -> Any:
            floating = isinstance(t, Tensor) and t.is_floating_point() and t.dtype is not torch.float64
            return t.to(dtype) if floating else t

        with torch.autocast(kind, enabled=False):
            return self(cast(x), [cast(w) for w in weights], cast(bias), raw, backend, constants)

    # The three primitives, differentiable by every route. Packed weights, schema arguments.

    def fwd(self, x: Tensor, w: Tensor, b: Tensor | None, args: tuple[Any, ...], backend: str | None) -> Tensor:
        return self._primitive("", (x, w, b), args, backend)

    def bwd_x(
        self, g: Tensor, w: Tensor, shape: Sequence[int], last: bool, args: tuple[Any, ...], backend: str | None
    ) -> Tensor:
        return self._primitive("_bwd_x", (g, w), (list(shape), last, *args), backend)

    def bwd_w(self, g: Tensor, x: Tensor, args: tuple[Any, ...], backend: str | None) -> Tensor:
        return self._primitive("_bwd_w", (g, x), args, backend)

    def _primitive(
        self, suffix: str, tensors: tuple[Tensor | None, ...], args: tuple[Any, ...], backend: str | None
    ) -> Tensor:
        if _functorch() or forward_ad._current_level >= 0:
            constants, values = self.rules.split(suffix, args)
            out: Tensor = self.rules.functions[suffix].apply(*tensors, *constants, values, backend)
            return out
        result: Tensor = self.ops[suffix](*tensors, *args, backend=backend)
        return result

    # Behind the op: validation and choice, then the backend.

    def _packed_meta(self, weights: Sequence[Tensor]) -> TensorMeta:
        """Of the packed weight, before it is made: what is wrong is found before anything is allocated."""
        shape = tuple(self.packed(weights))
        return TensorMeta(shape, (0,) * len(shape), weights[0].dtype, weights[0].device)

    def _plan(
        self,
        key: Hashable,
        x: Tensor,
        w: Tensor | TensorMeta | None,
        b: Tensor | None,
        args: tuple[Any, ...],
        backend: str | None,
        meta: TensorMeta | None = None,
    ) -> Plan:
        spec = self.spec_of(meta or TensorMeta.of(x), w, b, args)
        return self._memo.put(key, Plan(spec, args[self.constants :], self._choose(spec, backend)))

    def spec_of(self, x: TensorMeta, w: Tensor | TensorMeta | None, b: Tensor | None, args: tuple[Any, ...]) -> S:
        weight = TensorMeta.of(w) if isinstance(w, Tensor) else w
        values = (TensorMeta.of(a) if isinstance(a, Tensor) else a for a in args)
        spec: S = self.spec.of(x, weight, None if b is None else TensorMeta.of(b), *values)
        return spec

    def called(self, args: tuple[Any, ...]) -> S:
        """The Spec of a dispatcher call of the forward."""
        x, weight, bias, *values = args
        return self.spec_of(TensorMeta.of(x), weight, bias, tuple(values))

    def _choose(self, spec: S, backend: str | None) -> dict[str, _backends.Choice]:
        return _backends.choose_each(self.name, self.backends, spec, _backends.wanted(backend), self.kinds)

    def plan_of(
        self,
        kind: str,
        x: Tensor,
        w: Tensor | None,
        b: Tensor | None,
        args: tuple[Any, ...],
        backend: str | None,
        meta: TensorMeta | None = None,
    ) -> Plan:
        """The memoised plan of a dispatcher call; ``x`` gives dtype and device, ``meta`` the shape if not ``x``."""
        at = meta or TensorMeta.of(x)
        key = _hashable(
            [kind, args[self.constants :], backend, _forced(), _exact(), at]
            + [None if t is None else (t.shape, t.dtype, t.device) for t in (w, b, *args[: self.constants])]
        )
        plan = self._memo.get(key)
        return self._plan(key, x, w, b, args, backend, at) if plan is None else plan

    def _run_fwd(self, x: Tensor, w: Tensor, b: Tensor | None, *args: Any, backend: str | None = None) -> Tensor:
        plan = self.plan_of("fwd", x, w, b, args, backend)
        return plan.fwd(plan.spec, x, w, b, *args[: self.constants])

    def _run_bwd_x(
        self, g: Tensor, w: Tensor, shape: Sequence[int], last: bool, *args: Any, backend: str | None = None
    ) -> Tensor:
        meta = TensorMeta.dense(tuple(shape), last, g)
        plan = self.plan_of("bwd", g, w, None, args, backend, meta)
        self._check_gradient(plan.spec, g)
        return plan.bwd_x(plan.spec, g, w, *args[: self.constants])

    def _run_bwd_w(self, g: Tensor, x: Tensor, *args: Any, backend: str | None = None) -> Tensor:
        plan = self.plan_of("bwd", x, None, None, args, backend)
        self._check_gradient(plan.spec, g)
        return plan.bwd_w(plan.spec, g, x, *args[: self.constants])

    def _check_gradient(self, spec: S, g: Tensor) -> None:
        fits = len(g.shape) == 4 and all(a == b for a, b in zip(g.shape, spec.y_shape, strict=True))
        require(fits, self.name, "g", f"have the output's shape {list(spec.y_shape)}", g)

    def _fake_fwd(self, x: Tensor, w: Tensor, b: Tensor | None, *args: Any, backend: str | None = None) -> Tensor:
        spec = self.spec_of(TensorMeta.of(x), w, b, args)
        return x.new_empty_strided(spec.y_shape, spec.y_stride)

    def _fake_bwd_x(
        self, g: Tensor, w: Tensor, shape: Sequence[int], last: bool, *args: Any, backend: str | None = None
    ) -> Tensor:
        meta = TensorMeta.dense(tuple(shape), last, g)
        self.spec_of(meta, w, None, args)
        return g.new_empty_strided(tuple(shape), tuple(meta.stride))

    def _fake_bwd_w(self, g: Tensor, x: Tensor, *args: Any, backend: str | None = None) -> Tensor:
        return x.new_empty(self.spec_of(TensorMeta.of(x), None, None, args).weight_shape)

    # For programs that may hold aten alone: the reference's own calls.

    def decompositions(self) -> dict[Any, Callable[..., Tensor]]:
        """The three ops as aten calls, for ``ExportedProgram.run_decompositions`` (add them to its table)."""
        functions: dict[str, Callable[..., Tensor]] = {
            "": self._aten_fwd,
            "_bwd_x": self._aten_bwd_x,
            "_bwd_w": self._aten_bwd_w,
        }
        return {self.ops[suffix]: function for suffix, function in functions.items()}

    def _aten_fwd(self, x: Tensor, w: Tensor, b: Tensor | None, *args: Any, backend: str | None = None) -> Tensor:
        y: Tensor = self._reference("fwd")(self.spec_of(TensorMeta.of(x), w, b, args), x, w, b, *args[: self.constants])
        return y

    def _aten_bwd_x(
        self, g: Tensor, w: Tensor, shape: Sequence[int], last: bool, *args: Any, backend: str | None = None
    ) -> Tensor:
        spec = self.spec_of(TensorMeta.dense(tuple(shape), last, g), w, None, args)
        gx: Tensor = self._reference("bwd_x")(spec, g, w, *args[: self.constants])
        return gx

    def _aten_bwd_w(self, g: Tensor, x: Tensor, *args: Any, backend: str | None = None) -> Tensor:
        spec = self.spec_of(TensorMeta.of(x), None, None, args)
        gw: Tensor = self._reference("bwd_w")(spec, g, x, *args[: self.constants])
        return gw

    def _reference(self, name: str) -> Callable[..., Any]:
        return self.backends["reference"].function(name)

    # FLOPs of the definition, for torch.utils.flop_counter: from shapes alone.

    def _flops(self, shape: Sequence[int], args: tuple[Any, ...]) -> int:
        def free(shape: Sequence[int]) -> TensorMeta:
            return TensorMeta(tuple(shape), (0,) * len(shape), torch.float32, torch.device("meta"))

        constants = (free(a) for a in args[: self.constants])
        spec: S = self.spec.of(free(shape), None, None, *constants, *args[self.constants :])
        return spec.flops()

    def _flops_fwd(self, x: Any, w: Any, b: Any, *args: Any, out_shape: Any = None, **_: Any) -> int:
        return self._flops(x, args)

    def _flops_bwd_x(self, g: Any, w: Any, x: Any, last: Any, *args: Any, out_shape: Any = None, **_: Any) -> int:
        return self._flops(x, args)

    def _flops_bwd_w(self, g: Any, x: Any, *args: Any, out_shape: Any = None, **_: Any) -> int:
        return self._flops(x, args)


def _hashable(values: Sequence[Any]) -> Hashable:
    key: Hashable = tuple(values)
    try:
        hash(key)
    except TypeError:
        return _freeze(key)
    return key


def _freeze(value: Any) -> Hashable:
    if isinstance(value, list | tuple):
        return tuple(_freeze(v) for v in value)
    try:
        hash(value)
    except TypeError:
        return repr(value)
    frozen: Hashable = value
    return frozen

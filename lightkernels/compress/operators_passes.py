"""How an operator runs within the search: the active one with few saved tensors, neighbours without graph.

Outside the search, and wherever a short cut does not apply, an operator runs as any other module does.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from lightkernels._core.spec import Layout, is_dense
from lightkernels.compress.channel_norm import Act, channel_norm
from lightkernels.compress.operators_layers import GroupedConv2d, Shuffle, leaving

Value = Tensor | float  # of a scalar product; a float where no device has to be waited for
Repeats = list[Callable[[], Tensor]]
_LAYOUTS: tuple[Layout, ...] = ("nchw", "nhwc")


@dataclass
class Own:
    """Where an operator adds, to the gates' gradient, its output's scalar product with the gradient.

    The last norm has that product for nothing: its weight times the weight's gradient, and its bias likewise.
    """

    alpha: Tensor
    column: Tensor
    taken: bool = False


# Channels a filter sees: from here on 16-bit products outweigh the conversions, as measured with 16 to 64 channels.
_LOW = 16


class Low:
    """Neighbours' convolutions in 16 bit; several read the same input, which is converted once."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._of: Tensor | None = None
        self._copy: Tensor | None = None

    def pays(self, conv: GroupedConv2d, x: Tensor) -> bool:
        wide_enough = conv.in_channels >= _LOW * conv.groups and conv.kernel_size != (1, 1)
        return wide_enough and x.is_cpu and x.dtype is torch.float32

    def copy(self, x: Tensor) -> Tensor:
        if self._copy is None or self._of is not x:
            self._of, self._copy = x, x.to(self.dtype)
        return self._copy


class _Pass(threading.local):
    kind: Literal["whole", "active", "neighbour"] = "whole"
    own: Own | None = None
    low: Low | None = None


_pass = _Pass()


def current() -> _Pass:
    """How operators run here and now."""
    return _pass


def refuse_second() -> None:
    """In a backward pass: it has no derivative of its own, so none may be asked for."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "Selection: gradients must not be differentiated again; got create_graph=True. "
            "Hint: derive() gives ordinary layers."
        )


@contextlib.contextmanager
def running_as(kind: Literal["active", "neighbour"], own: Own | None = None, low: Low | None = None) -> Iterator[None]:
    before = _pass.kind, _pass.own, _pass.low
    _pass.kind, _pass.own, _pass.low = kind, own, low
    try:
        yield
    finally:
        _pass.kind, _pass.own, _pass.low = before


def convolved(conv: nn.Module, x: Tensor) -> Tensor:
    """``conv(x)``; of a neighbour, in 16 bit where that is asked for and faster. Its output is float32 again."""
    low = _pass.low
    if low is None or not isinstance(conv, GroupedConv2d) or not low.pays(conv, x):
        y: Tensor = conv(x)
        return y
    how: Any = (None, conv.stride, conv.padding, conv.dilation, conv.groups)
    return F.conv2d(low.copy(x), conv.weight.to(low.dtype), *how).float()


def wide(t: Tensor) -> Tensor:
    return t if t.device.type == "mps" else t.double()


def is_quick(norm: nn.Module, z: Tensor) -> bool:
    # A subclass may have no memory to read or to recognise it by, such as a fake tensor.
    return type(norm) is nn.BatchNorm2d and type(z) is Tensor and z.dtype.itemsize >= 4


def sums(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel, in float64, from one sum of values and one of squares.

    Several times faster than what the norm itself does on the CPU, and short of its accuracy where a channel's mean is
    many of its deviations: good for a neighbour's scalar product, not for the active operator's output.
    """
    count = z.numel() // z.shape[1]
    mean = wide(z.sum((2, 3))).sum(0) / count
    square = wide(torch.linalg.vector_norm(z, dim=(2, 3))).square().sum(0) / count
    return mean, (square - mean.square()).clamp_(min=0)


def product(a: Tensor, b: Tensor) -> Value:
    """The scalar product of two maps, a number on the CPU; 16-bit types are summed in float32."""
    found = _product(a, b)
    return found.item() if found.is_cpu else found


def scaled(column: Tensor, value: Value) -> Tensor:
    """Their product, of the column's type."""
    return column * (value if isinstance(value, float) else value.to(column.dtype))


def _product(a: Tensor, b: Tensor) -> Tensor:
    if a.dtype.itemsize < 4 or b.dtype.itemsize < 4:
        a, b = a.float(), b.float()
    if a.stride() != b.stride() or not any(is_dense(a.shape, a.stride(), layout) for layout in _LAYOUTS):
        return (a * b).sum()
    # Of dense tensors of equal strides, whatever these are: the elements in the order of memory.
    size = (a.numel(),)
    return torch.dot(a.as_strided(size, (1,)), b.as_strided(size, (1,)))


def affine(norm: nn.BatchNorm2d, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and bias of ``norm(z) = scale * (z - mean) + bias``, float64."""
    scale = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * wide(norm.weight.detach())
    return scale, torch.zeros_like(scale) if norm.bias is None else wide(norm.bias.detach())


def norm_act(
    norm: nn.Module,
    z: Tensor,
    act: Act = "none",
    shuffle: nn.Module | None = None,
    repeats: Repeats | None = None,
    base: Tensor | None = None,
    again: Again | None = None,
) -> Tensor:
    """The norm and what follows: nothing, ReLU, or the rectified map and the rectified negative; a shuffle; plus base.

    What makes the output of the active operator once more is appended to `repeats`; `again` makes base.
    """
    if _pass.kind != "whole" and is_quick(norm, z) and norm.training and z.numel() > z.shape[1]:
        assert isinstance(norm, nn.BatchNorm2d)
        groups = shuffle.groups if isinstance(shuffle, Shuffle) else 1
        if _pass.kind == "neighbour":
            kernels = channel_norm(z, act, groups, norm)
            if kernels is not None:
                found: Tensor = kernels.forward(norm, base)[0]
                return found
            mean, variance = (t.to(z.dtype) for t in sums(z))
            return _normed(norm, z, act, groups, mean, variance, base)
        if z.is_cpu and torch.is_grad_enabled():
            args = (norm, act, groups, repeats, again, z, norm.weight, norm.bias, base, *gate_of(norm))
            out: Tensor = _NormAct.apply(*args)  # type: ignore[no-untyped-call]
            return out
    quick = _for_inference(norm, z, act, shuffle, base)
    if quick is not None:
        return quick
    y: Tensor = norm(z)
    if act == "crelu":
        y = torch.cat((F.relu(y), F.relu(-y)), 1)
    elif act == "relu":
        y = F.relu(y)
    y = y if shuffle is None else shuffle(y)
    return y if base is None else y + base


def _for_inference(
    norm: nn.Module, z: Tensor, act: Act, shuffle: nn.Module | None, base: Tensor | None
) -> Tensor | None:
    """All of it in one pass where nobody looks: no gradient, no hook, no mode, no compiler."""
    if torch.is_grad_enabled() or norm.training or type(norm) is not nn.BatchNorm2d or type(z) is not Tensor:
        return None
    mean, variance, weight = norm.running_mean, norm.running_var, norm.weight
    if mean is None or variance is None or weight is None or weight.dtype is not torch.float32:
        return None
    if norm._forward_hooks or norm._forward_pre_hooks or _watched():
        return None
    kernels = channel_norm(z, act, shuffle.groups if isinstance(shuffle, Shuffle) else 1)
    if kernels is None:
        return None
    scale = weight * (variance + norm.eps).rsqrt_()
    y: Tensor = kernels.apply(scale, torch.addcmul(norm.bias, mean, scale, value=-1), base)
    return y


def _watched() -> bool:
    return bool(
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._are_functorch_transforms_active()
        or leaving()
    )


def _normed(
    norm: nn.BatchNorm2d, z: Tensor, act: Act, groups: int, mean: Tensor, variance: Tensor, base: Tensor | None
) -> Tensor:
    y = F.batch_norm(z, mean, variance, norm.weight, norm.bias, False, 0.0, norm.eps)
    if act == "relu":
        F.relu_(y)
    elif act == "crelu":
        y = torch.cat((F.relu(y), y.neg_().relu_()), 1)
    y = y if groups == 1 else F.channel_shuffle(y, groups)
    return y if base is None else y + base


def gate_of(norm: nn.BatchNorm2d) -> tuple[Tensor, ...]:
    """What the norm of the active operator takes to give its gate's gradient, too; nothing where another one does."""
    own = _pass.own if norm.affine else None
    if own is None:
        return ()
    own.taken = True
    return own.alpha, own.column


def kept_of_base(ctx: Any, base: Tensor | None, column: Tensor | None, again: Again | None) -> tuple[Tensor, ...]:
    """What the gate's gradient needs of `base`: itself, to be saved last, or in ``ctx.read`` how it is made again."""
    ctx.read = None
    if column is None or base is None:
        return ()
    if again is None:
        return (base,)
    ctx.read = again.reader()
    return ()


def gate_grads(ctx: Any, own: Value, g: Tensor, saved: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """The gradients of what :func:`gate_of` gave; `own`: weight and bias times theirs, summed."""
    if ctx.column is None:
        return ()
    if ctx.added:
        own = own + product(ctx.read() if ctx.read is not None else saved[-1], g)
    return scaled(ctx.column, own), None


class _NormAct(Function):
    """A norm in training, its activation, a shuffle and a sum, of which only the norm's input is kept."""

    @staticmethod
    def forward(
        ctx: Any,
        norm: nn.BatchNorm2d,
        act: Act,
        groups: int,
        repeats: Repeats | None,
        again: Again | None,
        z: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        base: Tensor | None,
        alpha: Tensor | None = None,
        column: Tensor | None = None,
    ) -> Tensor:
        kernels, kept = channel_norm(z, act, groups, norm), z.detach()
        other = None if base is None else base.detach()
        if kernels is None:
            count = z.numel() // z.shape[1]
            mean = (z.sum((2, 3)).double().sum(0) / count).to(z.dtype)
            centred = z - mean[:, None, None]
            variance = (torch.linalg.vector_norm(centred, dim=(2, 3)).double().square().sum(0) / count).to(z.dtype)
            _count_in(norm, mean, variance, count)
            given: tuple[Tensor, ...] = (mean, variance)
            y = _normed(norm, kept, act, groups, mean, variance, base)

            def make() -> Tensor:
                return _normed(norm, kept, act, groups, mean, variance, other)

        else:
            y, numbers = kernels.forward(norm, base, count=True)
            given = (numbers,)

            def make() -> Tensor:
                found: Tensor = channel_norm(kept, act, groups).apply(numbers[3], numbers[4], other)
                return found

        if repeats is not None:
            repeats.append(make)
        ctx.save_for_backward(z, weight, bias, *given, *kept_of_base(ctx, base, column, again))
        ctx.act, ctx.groups, ctx.eps, ctx.column = act, groups, norm.eps, column
        ctx.native, ctx.added = kernels is not None, base is not None
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second()
        z, weight, bias, *given = ctx.saved_tensors
        need = ctx.needs_input_grad[5:8]
        own: Value
        if ctx.native:
            kernels = channel_norm(z, ctx.act, ctx.groups)
            dz, (dw, db), own = kernels.backward(g, weight, bias, given[0], need[0])
        else:
            wanted = need if ctx.column is None else (need[0], True, True)
            dz, dw, db = _backward(ctx, g, z, weight, bias, given, wanted)
            own = 0.0 if ctx.column is None else torch.dot(weight, dw) + torch.dot(bias, db)
        weights = dw if need[1] else None, db if need[2] else None
        grads = None, None, None, None, None, dz, *weights, g if ctx.added else None
        return *grads, *gate_grads(ctx, own, g, given)


def _backward(
    ctx: Any,
    g: Tensor,
    z: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    given: Sequence[Tensor],
    need: Sequence[bool],
) -> tuple[Tensor | None, Tensor, Tensor]:
    mean, variance = given[:2]
    if ctx.groups > 1:
        g = F.channel_shuffle(g, g.shape[1] // ctx.groups)
    if ctx.act != "none":
        y = F.batch_norm(z, mean, variance, weight, bias, False, 0.0, ctx.eps)
        if ctx.act == "relu":
            g = torch.ops.aten.threshold_backward(g, y, 0)
        else:
            plus, minus = g.chunk(2, 1)
            g = torch.ops.aten.threshold_backward(plus, y, 0)
            g = g.sub_(torch.ops.aten.threshold_backward(minus, y.neg_(), 0))
    inverse = (variance + ctx.eps).rsqrt()
    found: tuple[Tensor | None, Tensor, Tensor] = torch.ops.aten.native_batch_norm_backward(
        g, z, weight, None, None, mean, inverse, True, ctx.eps, need
    )
    return found


def _count_in(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int) -> None:
    """The running statistics after one more batch, as the norm itself keeps them."""
    if not norm.track_running_stats or norm.running_mean is None or norm.running_var is None:
        return
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    share = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
    norm.running_var.lerp_((variance * (count / (count - 1))).to(norm.running_var.dtype), share)


class Again:
    """A tensor that is not kept for backward but made once more there, for all who saved it."""

    def __init__(self, value: Tensor, make: Callable[[], Tensor]) -> None:
        self._key, self._make = (value.data_ptr(), value.shape), make
        self._value: Tensor | None = None
        self._readers = self._left = 0

    def reader(self) -> Callable[[], Tensor]:
        """For somebody who needs it once in backward."""
        self._readers += 1
        return self._read

    def _read(self) -> Tensor:
        if self._value is None:
            refuse_second()
            with torch.no_grad():
                self._value, self._left = self._make(), self._readers
        value, self._left = self._value, self._left - 1
        if self._left == 0:
            self._value = None
        return value

    def _pack(self, t: Tensor) -> Tensor | Callable[[], Tensor]:
        return self.reader() if (t.data_ptr(), t.shape) == self._key else t

    def left_out(self) -> Any:
        """A context in which autograd saves it without its values."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, lambda t: t if isinstance(t, Tensor) else t())


def _keeps_little(x: Tensor) -> bool:
    active = _pass.kind == "active" and torch.is_grad_enabled() and type(x) is Tensor
    return active and not torch.is_autocast_enabled(x.device.type)


def recomputed(
    inner: Callable[[Tensor], Tensor], outer: Callable[[Tensor], Tensor], x: Tensor, again: Again | None = None
) -> Tensor:
    """``outer(inner(x))``; in the active pass, backward computes ``inner(x)`` again instead of keeping it."""
    y = inner(x)
    if not _keeps_little(x):
        return outer(y)
    if again is not None:
        read = again.reader()
    else:
        base = x.detach()

        def read() -> Tensor:
            return base

    with Again(y, lambda: inner(read())).left_out():
        return outer(y)


def joined(a: Tensor, b: Tensor) -> Tensor:
    """Both, channels after channels; on the CPU torch.cat would do it in one thread."""
    if _pass.kind == "whole" or not a.is_cpu:
        return torch.cat((a, b), 1)
    out: Tensor = _Joined.apply(a, b)  # type: ignore[no-untyped-call]
    return out


class _Joined(Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.sizes = [a.shape[1], b.shape[1]]
        y = a.new_empty(a.shape[0], sum(ctx.sizes), *a.shape[2:])
        for part, value in zip(y.split(ctx.sizes, 1), (a, b), strict=True):
            part.copy_(value)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, ...]:
        refuse_second()
        first, second = g.split(ctx.sizes, 1)
        return first, second

"""Assertions that the package's own tests use, for whoever writes an operator or a backend.

An operator's ``cases.py`` holds ``CASES``, a tuple of :class:`Case`, and ``oracle``, its definition as plain loops.
The test suite runs every kind of check over every case on every backend; nothing else has to be written.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _device
from torch.utils._pytree import tree_flatten, tree_unflatten

from lightkernels._core.spec import dense_stride, layout_of

__all__ = [
    "Case",
    "Draw",
    "Embedded",
    "Sample",
    "assert_accurate",
    "assert_adjoint",
    "assert_close64",
    "assert_keeps_layout",
    "assert_same_bits",
    "embed",
    "guarded",
    "poisoned",
    "rms",
    "same_bits",
    "views",
]

GUARD = 96
_SENTINEL = 0xA5


class Sample(NamedTuple):
    """One call of a public function: positional arguments, the input first, and keyword arguments."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def tensors(self) -> list[Tensor]:
        """The floating-point tensors among the arguments, in order: what the operator is differentiable in."""
        return [leaf for leaf in tree_flatten(self.args)[0] if _floating(leaf)]

    def replace(self, tensors: Sequence[Tensor]) -> Sample:
        """The same call with other floating-point tensors."""
        leaves, tree = tree_flatten(self.args)
        fresh = iter(tensors)
        return Sample(tree_unflatten([next(fresh) if _floating(t) else t for t in leaves], tree), self.kwargs)

    def map(self, change: Callable[[Tensor], Tensor]) -> Sample:
        return self.replace([change(t) for t in self.tensors()])

    def requires_grad(self) -> Sample:
        return self.map(lambda t: t.detach().requires_grad_())


def _floating(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


class Draw:
    """Hands out a case's tensors; equal seeds give equal values in every layout, before rounding to ``dtype``."""

    def __init__(
        self, seed: int, dtype: torch.dtype, layout: str = "nchw", device: str = "cpu", integers: bool = False
    ) -> None:
        self.dtype, self.layout, self.device, self.integers = dtype, layout, device, integers
        self.generator = torch.Generator().manual_seed(seed)

    def tensor(self, *shape: int) -> Tensor:
        """Normal values, or whole numbers from -15 to 15: small enough for exact sums, too many bits for bfloat16."""
        if self.integers:
            t = torch.randint(-15, 16, shape, generator=self.generator, dtype=torch.float64)
        else:
            t = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return t.to(self.dtype).to(self.device)

    def image(self, *shape: int) -> Tensor:
        """[N, C, H, W], dense in the layout asked for."""
        stride = dense_stride(shape, "nhwc" if self.layout == "nhwc" else "nchw")
        values = self.tensor(*shape)
        return torch.zeros_like(values).new_empty_strided(shape, stride).copy_(values)


@dataclass(frozen=True)
class Case:
    """One row of an operator's table.

    Tags: ``core`` marks the few rows that slow kinds run (compile, export, functorch), ``tiny`` those small enough
    for numerical derivatives, ``bulk`` those of more than one tile of every kernel, ``bench`` the sizes of benchmarks,
    which tests leave out.
    """

    name: str
    make: Callable[[Draw], Sample]
    tags: frozenset[str] = frozenset()

    def build(
        self,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        layout: str = "nchw",
        device: str = "cpu",
        integers: bool = False,
    ) -> Sample:
        return self.make(Draw(seed, dtype, layout, device, integers))


def rms(t: Tensor) -> float:
    return math.sqrt(float(t.detach().double().square().mean())) if t.numel() else 0.0


def _worst(actual: Tensor, expected: Tensor) -> str:
    gap = (actual.detach().double() - expected.detach().double()).abs().nan_to_num(math.inf)
    at = [int(i) for i in torch.unravel_index(gap.argmax(), gap.shape)] if gap.numel() else []
    return f"worst at {at}: {actual[tuple(at)].item():.9g} for {expected[tuple(at)].item():.9g}"


def _same_kind(actual: Tensor, expected: Tensor, dtype: torch.dtype, what: str) -> None:
    if actual.shape != expected.shape or actual.dtype != dtype:
        raise AssertionError(
            f"{what}: {list(actual.shape)} {actual.dtype} where {list(expected.shape)} {dtype} was due"
        )


def assert_accurate(actual: Tensor, truth: Tensor, baseline: Tensor, what: str = "result", ulps: int = 1) -> None:
    """RMS error from ``truth`` (float64) at most twice that of ``baseline`` plus ``ulps`` of the RMS of the truth.

    Args:
        actual: any shape, any floating dtype.
        truth: actual's shape, float64, computed from the same rounded inputs.
        baseline: the reference's result in actual's dtype.

    Raises:
        AssertionError: also for another shape or dtype, or a value that is not finite where truth is.
    """
    _same_kind(actual, truth, baseline.dtype, what)
    truth = truth.detach()
    bound = 2 * rms(baseline.detach().double() - truth) + ulps * torch.finfo(actual.dtype).eps * rms(truth)
    error = rms(actual.detach().double() - truth)
    if not error <= bound:
        raise AssertionError(f"{what}: RMS error {error:.3g} above {bound:.3g}; {_worst(actual, truth)}")


def assert_close64(actual: Tensor, expected: Tensor, terms: Tensor, products: Tensor, what: str = "result") -> None:
    """float64: each element within 4 * 2**-53 * sqrt(products) * terms of the reference's.

    Args:
        terms: the sum of the absolute values of what each element adds up.
        products: how many products each element adds up.
    """
    _same_kind(actual, expected, torch.float64, what)
    bound = 4 * 2.0**-53 * products.detach().sqrt() * terms.detach()
    inside = (actual.detach() - expected.detach()).abs() <= bound
    if not bool(inside.all()):
        raise AssertionError(f"{what}: {int((~inside).sum())} elements out of bound; {_worst(actual, expected)}")


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal shape, dtype and bits; NaN equals itself, and 0 differs from -0."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(_bits(a), _bits(b))


def _bits(t: Tensor) -> Tensor:
    return t.detach().contiguous().flatten().view(torch.uint8)


def assert_same_bits(actual: Tensor, expected: Tensor, what: str = "result") -> None:
    if not same_bits(actual, expected):
        _same_kind(actual, expected, expected.dtype, what)
        raise AssertionError(f"{what}: not equal bit for bit; {_worst(actual, expected)}")


def assert_keeps_layout(x: Tensor, y: Tensor, what: str = "result") -> None:
    """``y`` [N, C, H, W] is dense in the layout of ``x``, with that format's own strides."""
    due = dense_stride(tuple(y.shape), layout_of(x.shape, x.stride()))
    if y.stride() != due:
        raise AssertionError(f"{what}: strides {y.stride()} where {due} was due (x has {x.stride()})")


def assert_adjoint(
    output: Tensor,
    gradients: Sequence[Tensor],
    inputs: Sequence[Tensor],
    g: Tensor,
    terms: Tensor,
    products: Tensor,
    what: str = "adjoint",
) -> None:
    """<output, g> equals <input, gradient> for every input that the output is linear in.

    The bound is six standard deviations of independent rounding errors: one at each store, and those of
    accumulation in float32 (float64) over ``products`` terms that sum to ``terms`` in absolute value.
    """
    dtype = output.dtype
    store = torch.finfo(dtype).eps
    inner = 2.0**-53 if dtype is torch.float64 else 2.0**-24

    def dot(a: Tensor, b: Tensor) -> tuple[float, float]:
        each = a.detach().double() * b.detach().double()
        return float(each.sum()), store * math.sqrt(float(each.square().sum()))

    forward, spread = dot(output, g)
    depth = terms.detach().double() * products.detach().double().sqrt() * g.detach().double()
    accumulation = inner * math.sqrt(float(depth.square().sum()))
    for i, (t, dt) in enumerate(zip(inputs, gradients, strict=True)):
        backward, own = dot(t, dt)
        bound = 6 * (spread + own + 2 * accumulation)
        if not abs(forward - backward) <= bound:
            raise AssertionError(
                f"{what}: <output, g> = {forward:.9g} but <input {i}, its gradient> = {backward:.9g}, bound {bound:.3g}"
            )


def views(x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """``x`` [N, C, H, W] through many strides: the same values (``expanded``: of the first image), other storage."""
    n, c, h, w = x.shape

    def inside(shape: tuple[int, ...], index: tuple[slice, ...], order: tuple[int, ...] = (0, 1, 2, 3)) -> Tensor:
        store = torch.full([shape[i] for i in order], math.nan, dtype=x.dtype, device=x.device)
        view = store.permute([order.index(i) for i in range(4)])[index]
        return view.copy_(x)

    every = slice(None)
    last = (0, 2, 3, 1)
    yield "batch slice", inside((2 * n + 1, c, h, w), (slice(1, None, 2),))
    yield "batch slice, channels last", inside((n + 2, c, h, w), (slice(1, n + 1),), last)
    yield "channel slice", inside((n, c + 5, h, w), (every, slice(3, c + 3)))
    yield "channel slice, channels last", inside((n, c + 5, h, w), (every, slice(3, c + 3)), last)
    yield "every second channel", inside((n, 2 * c, h, w), (every, slice(None, None, 2)))
    yield "every second channel, channels last", inside((n, 2 * c, h, w), (every, slice(None, None, 2)), last)
    yield "row slice", inside((n, c, h + 3, w), (every, every, slice(2, h + 2)))
    yield "row slice, channels last", inside((n, c, h + 3, w), (every, every, slice(2, h + 2)), last)
    yield "column slice", inside((n, c, h, w + 3), (every, every, every, slice(1, w + 1)))
    yield "column slice, channels last", inside((n, c, h, w + 3), (every, every, every, slice(1, w + 1)), last)
    yield "every second column", inside((n, c, h, 2 * w), (every, every, every, slice(None, None, 2)))
    yield "rows and columns exchanged", inside((n, c, h, w), (), (0, 1, 3, 2))
    yield "batch and channels exchanged", inside((n, c, h, w), (), (1, 0, 2, 3))
    yield "batch innermost", inside((n, c, h, w), (), (1, 2, 3, 0))
    yield "rows before channels", inside((n, c, h, w), (), (0, 2, 1, 3))
    yield "expanded batch", x[:1].expand(n, c, h, w)


@dataclass(frozen=True)
class Embedded:
    """A tensor inside a larger storage; ``check`` says whether the storage around it was written."""

    tensor: Tensor
    store: Tensor
    begin: int
    end: int

    def check(self, what: str = "tensor") -> None:
        for side, part in (("before", self.store[: self.begin]), ("after", self.store[self.end :])):
            if bool((part != _SENTINEL).any()):
                raise AssertionError(f"{what}: memory {side} it was written")


def _embedded(shape: Sequence[int], stride: Sequence[int], like: Tensor, offset: int) -> Embedded:
    """An uninitialised tensor between two guards, not a view of another in autograd's eyes."""
    item = like.element_size()
    span = 1 + sum((s - 1) * d for s, d in zip(shape, stride, strict=True)) if all(shape) else 0
    begin = (GUARD + offset) * item
    store = torch.full((begin + (span + GUARD) * item,), _SENTINEL, dtype=torch.uint8, device=like.device)
    tensor = torch.tensor([], dtype=like.dtype, device=like.device)
    tensor.set_(store.untyped_storage(), GUARD + offset, tuple(shape), tuple(stride))
    return Embedded(tensor, store, begin, begin + span * item)


def embed(t: Tensor, offset: int = 0) -> Embedded:
    """A copy of ``t``, with its strides, ``offset`` elements further into a storage of sentinels."""
    with torch.no_grad():
        held = _embedded(t.shape, t.stride(), t, offset)
        held.tensor.copy_(t)
    return held


def _poison(t: Tensor) -> Tensor:
    if t.is_floating_point() or t.is_complex():
        return t.detach().fill_(math.nan) if t.requires_grad else t.fill_(math.nan)
    if t.dtype is torch.bool:
        return t.fill_(True)
    return t.fill_(torch.iinfo(t.dtype).max)


_MAKERS = (
    (torch, "empty"),
    (torch, "empty_like"),
    (torch, "empty_strided"),
    (torch, "empty_permuted"),
    (Tensor, "new_empty"),
    (Tensor, "new_empty_strided"),
)


@contextlib.contextmanager
def _patched(wrap: Callable[[Callable[..., Tensor]], Callable[..., Tensor]]) -> Iterator[None]:
    kept = [(owner, name, name in vars(owner), getattr(owner, name)) for owner, name in _MAKERS]
    try:
        for owner, name, _, function in kept:
            setattr(owner, name, wrap(function))
        yield
    finally:
        for owner, name, own, function in kept:
            if own:
                setattr(owner, name, function)
            else:
                delattr(owner, name)


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Inside, memory that Python code asks for uninitialised holds NaN (integers: their largest value)."""

    def wrap(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def filled(*args: Any, **kwargs: Any) -> Tensor:
            t = function(*args, **kwargs)
            if type(t) is Tensor and not t.is_meta:  # others have no memory of their own
                with torch.no_grad():
                    _poison(t)
            return t

        return filled

    # torch remembers, at the first use of a device context, which functions make tensors: the true ones, by now.
    _device._device_constructors()
    with _patched(wrap):
        yield


@contextlib.contextmanager
def guarded(offset: int = 0) -> Iterator[list[Embedded]]:
    """As :func:`poisoned`, and every such tensor lies ``offset`` elements behind a guard, with another after it.

    Raises:
        AssertionError: on leaving, if a guard was written.
    """
    made: list[Embedded] = []
    _device._device_constructors()

    def wrap(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def held(*args: Any, **kwargs: Any) -> Tensor:
            t = function(*args, **kwargs)
            if t.device.type == "meta" or type(t) is not Tensor or t.requires_grad:
                return t
            with torch.no_grad():
                made.append(_embedded(t.shape, t.stride(), t, offset))
                return _poison(made[-1].tensor)

        return held

    with _patched(wrap):
        yield made
    for one in made:
        one.check(f"buffer {list(one.tensor.shape)}, strides {one.tensor.stride()}")

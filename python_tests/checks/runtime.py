"""Repeats, threads, backend choice, and the rest of PyTorch that an operator must live with."""

import itertools
import threading
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from checks.compiled import floating, op_arguments
from checks.parity import Values, evaluate, forward_shape, judge, upstream
from checks.target import BOTH, Target, Theme
from lightkernels.testing import Case, Sample, assert_accurate, assert_keeps_layout, assert_same_bits, same_bits

THEME = Theme()


def equal(actual: Values, expected: Values, what: str) -> None:
    for (name, a), (_, e) in zip(actual.named(), expected.named(), strict=True):
        assert_same_bits(a, e, f"{what}, {name}")


@contextmanager
def threads(count: int):
    kept = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(kept)


def _raises(kind: type[BaseException], part: str, call) -> None:
    try:
        call()
    except kind as error:
        if part not in str(error):
            raise AssertionError(f"{part!r} is not in {error!r}") from error
        return
    raise AssertionError(f"no {kind.__name__}")


@THEME.kind(tag="bulk", layouts=BOTH, fused=99)
def repeats(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """Bit for bit the same, time after time."""
    sample = target.build(case, dtype, layout, seed)
    with torch.no_grad():
        g = upstream(target(sample), seed)
    first = evaluate(target, sample, g)
    for i in range(4):
        equal(evaluate(target, sample, g), first, f"repeat {i}")


@THEME.kind(tag="bulk", layouts=BOTH, native=True, fused=99)
def thread_counts(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """Bit for bit the same for any number of threads."""
    sample = target.build(case, dtype, layout, seed)
    with torch.no_grad():
        g = upstream(target(sample), seed)
    found = []
    for count in (1, 2, 5):
        with threads(count):
            found.append(evaluate(target, sample, g))
    # The bias gradient is torch's own sum, whose order may depend on the number of threads.
    ends = len(found[0].gradients) - (sample.args[-1] is not None)
    for count, values in zip((2, 5), found[1:], strict=True):
        short = Values(values.output, values.gradients[:ends])
        equal(short, Values(found[0].output, found[0].gradients[:ends]), f"{count} threads against one")


@THEME.kind(tag="core", layouts=BOTH, fused=99)
def python_threads(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """Four threads at once, each with its own data and its own sizes of it."""
    samples = [target.build(case, dtype, layout, seed + i) for i in range(4)]
    upstreams = [upstream(forward_shape(target, s), seed) for s in samples]
    due = [evaluate(target, s, g) for s, g in zip(samples, upstreams, strict=True)]
    wrong: list[BaseException] = []
    start = threading.Barrier(len(samples))

    def work(i: int) -> None:
        try:
            start.wait()
            for _ in range(8):
                equal(evaluate(target, samples[i], upstreams[i]), due[i], f"thread {i}")
        except BaseException as error:
            wrong.append(error)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(samples))]
    for one in workers:
        one.start()
    for one in workers:
        one.join()
    if wrong:
        raise wrong[0]


@THEME.kind(tag="core", layouts=BOTH)
def autocast(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """Computes in the autocast dtype; gradients come back in each tensor's own; float64 stays."""
    sample = target.build(case, dtype, layout, seed).requires_grad()
    for low in (torch.bfloat16, torch.float16):
        plain = sample.map(lambda t, low=low: t.detach().to(low))
        with torch.autocast(target.device, low):
            y = target(sample)
            mixed = target(sample.replace([plain.tensors()[0], *sample.tensors()[1:]]))
        if y.dtype != low:
            raise AssertionError(f"output is {y.dtype} under autocast to {low}")
        assert_same_bits(y, target(plain), "output")
        assert_same_bits(mixed, target(plain), "output of mixed inputs")
        assert_keeps_layout(sample.args[0], y)
        g = upstream(y, seed)
        grads = torch.autograd.grad(y, sample.tensors(), g)
        for i, (a, e) in enumerate(zip(grads, evaluate(target, plain, g).gradients, strict=True)):
            if a.dtype != dtype:
                raise AssertionError(f"gradient {i} is {a.dtype}")
            assert_same_bits(a, e.to(dtype), f"gradient {i}")
    wide = sample.map(lambda t: t.detach().double())
    with torch.autocast(target.device, torch.bfloat16):
        assert_same_bits(target(wide), target(wide))
        if target(wide).dtype is not torch.float64:
            raise AssertionError("float64 is not kept under autocast")


@THEME.kind(layouts=BOTH, dtypes=(torch.float32, torch.float16), only=("reference",), fused=99)
def meta_device(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """Shapes, strides and dtypes without data, gradients too; fakes know no backend."""
    sample = target.build(case, dtype, layout, seed)
    real = evaluate(target, sample, forward_shape(target, sample))
    ghost = Sample(*tree_map_only(Tensor, lambda t: t.to("meta"), tuple(sample)))
    free = Target(target.package, target.backend, "meta")
    y = free.public(*ghost.args, **ghost.kwargs)
    found = evaluate(lambda s: free.public(*s.args, **s.kwargs), ghost, torch.empty_like(y))
    for (what, a), (_, e) in zip(found.named(), real.named(), strict=True):
        if (a.shape, a.stride(), a.dtype, a.device.type) != (e.shape, e.stride(), e.dtype, "meta"):
            raise AssertionError(f"{what}: {a.shape}, {a.stride()} on {a.device} where {e.shape}, {e.stride()} was due")


@THEME.kind(tag="core", layouts=BOTH, fused=99)
def inference(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """In inference mode, with inference tensors, and with frozen weights after it."""
    sample = target.build(case, dtype, layout, seed)
    due = target(sample)
    with torch.inference_mode():
        inside = sample.map(Tensor.clone)
        assert_same_bits(target(inside), due, "inference tensors")
        y = target(sample)
    assert_same_bits(y, due, "ordinary tensors")
    if not y.is_inference():
        raise AssertionError("the output is not an inference tensor")
    with torch.no_grad():
        assert_same_bits(target(sample.requires_grad()), due, "no_grad")


class Wrapped(Tensor):
    """A subclass that goes through torch functions and remembers that it did."""

    seen: list[str] = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.seen.append(getattr(func, "__name__", str(func)))
        return super().__torch_function__(func, types, args, kwargs or {})


@THEME.kind(tag="core", layouts=BOTH, fused=99)
def subclasses(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """A tensor subclass as x or as a weight: same values, its class kept."""
    sample = target.build(case, dtype, layout, seed)
    due = target(sample)
    for i in (0, 1):
        tensors = [t.as_subclass(Wrapped) if j == i else t for j, t in enumerate(sample.tensors())]
        y = target(sample.replace(tensors))
        assert_same_bits(y.as_subclass(Tensor), due, f"tensor {i} of a subclass")
        if not isinstance(y, Wrapped):
            raise AssertionError(f"tensor {i} of a subclass: the output is a {type(y).__name__}")


@THEME.kind(tag="core", layouts=BOTH, fused=99)
def dispatch_modes(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """A dispatch mode sees one op forward and each gradient as one op; the result is the same."""
    sample = target.build(case, dtype, layout, seed)
    g = upstream(forward_shape(target, sample), seed)

    class Names(TorchDispatchMode):
        seen: list[str] = []  # noqa: RUF012

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Names() as mode:
        mode.seen.clear()
        inside = evaluate(target, sample, g)
    equal(inside, evaluate(target, sample, g), "in a dispatch mode")
    ours = [n for n in mode.seen if n.startswith("lightkernels.")]
    due = [f"lightkernels.{target.name}{s}.default" for s in target.op.ops]
    if sorted(ours) != sorted(due):
        raise AssertionError(f"the mode saw {ours}")


@THEME.kind(tag="core", fused=99)
def odd_tensors(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """Negated views, zero tensors, and gradients that are either."""
    sample = target.build(case, dtype, layout, seed)
    x = sample.tensors()[0]
    due = target(sample)
    strided = torch.complex(torch.zeros_like(x), -x).conj().imag
    for i, t in enumerate(sample.tensors()):
        for view in (torch._neg_view(-t), *((strided,) if i == 0 else ())):
            if not view.is_neg():
                raise AssertionError("not a negated view")
            tensors = [view if j == i else u for j, u in enumerate(sample.tensors())]
            assert_same_bits(target(sample.replace(tensors)), due, f"tensor {i} a negated view")
            leaves = sample.replace(tensors).requires_grad()
            (grad,) = torch.autograd.grad(target(leaves).sum(), leaves.tensors()[0])
            plain = sample.requires_grad()
            (expected,) = torch.autograd.grad(target(plain).sum(), plain.tensors()[0])
            assert_same_bits(grad, expected, f"gradient with tensor {i} a negated view")
        zero = torch._efficientzerotensor(t.shape, dtype=dtype)
        tensors = [zero if j == i else u for j, u in enumerate(sample.tensors())]
        dense = [torch.zeros_like(t) if j == i else u for j, u in enumerate(sample.tensors())]
        actual, expected = target(sample.replace(tensors)), target(sample.replace(dense))
        assert_same_bits(actual + 0, expected + 0, f"tensor {i} a zero tensor")
    g = upstream(forward_shape(target, sample), seed)
    equal(evaluate(target, sample, torch._neg_view(-g)), evaluate(target, sample, g), "negated gradient")
    none = torch._efficientzerotensor(g.shape, dtype=dtype)
    for what, t in evaluate(target, sample, none).named()[1:]:
        if bool((t != 0).any()):
            raise AssertionError(f"{what} of a zero gradient is not zero")


@THEME.kind(layouts=BOTH, only=("reference",), fused=99)
def flop_count(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """torch's counter sees 2 x the multiply-adds of the definition, and as many for each gradient."""
    sample = target.build(case, dtype, layout, seed).requires_grad()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        target(sample)
    forward = counter.get_total_flops()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        target.truth(sample)
    due = counter.get_total_flops()
    uncounted = due == 0 and forward > 0 and sample.args[0].numel() > 0  # elementwise calls, unknown to torch
    if forward != due and not uncounted:
        raise AssertionError(f"{forward} FLOPs counted, {due} for the reference's own calls")
    with FlopCounterMode(display=False) as counter:
        target(sample).sum().backward()
    if counter.get_total_flops() != 3 * forward:
        raise AssertionError(f"{counter.get_total_flops()} FLOPs for a step, {forward} forward")


@THEME.kind(tag="core", fused=99)
def deterministic_algorithms(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """The flag changes nothing, and nothing refuses it."""
    sample = target.build(case, dtype, layout, seed)
    g = upstream(forward_shape(target, sample), seed)
    due = evaluate(target, sample, g)
    torch.use_deterministic_algorithms(True)
    try:
        equal(evaluate(target, sample, g), due, "with deterministic algorithms")
    finally:
        torch.use_deterministic_algorithms(False)


@THEME.kind(tag="core")
def changed_in_place(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """An input that is changed between forward and backward is an error, not a wrong gradient."""
    sample = target.build(case, dtype, layout, seed)
    for i in range(len(sample.tensors()) - (sample.args[-1] is not None)):
        leaves = [t.clone().requires_grad_() for t in sample.tensors()]
        given = [t * 1 for t in leaves]
        y = target(sample.replace(given))
        with torch.no_grad():
            given[i].add_(1)
        _raises(RuntimeError, "modified by an inplace operation", y.sum().backward)
    leaves = [t.clone().requires_grad_() for t in sample.tensors()]
    y = target(sample.replace(leaves))
    y.mul_(2).sum().backward()
    again = target(sample.replace(leaves)).sum()
    again.backward()
    _raises(RuntimeError, "second time", again.backward)


@THEME.kind(tag="core", first=2, fused=99)
def checkpointing(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    sample = target.build(case, dtype, layout, seed)
    g = upstream(forward_shape(target, sample), seed)
    due = evaluate(target, sample, g)
    for reentrant in (False, True):
        leaves = sample.requires_grad().tensors()
        y = checkpoint(target.function(sample), *leaves, use_reentrant=reentrant)
        y.backward(g)
        equal(Values(y.detach(), tuple(t.grad for t in leaves)), due, f"reentrant={reentrant}")


@THEME.kind(tag="core", first=1, layouts=BOTH)
def saved_tensor_hooks(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """Only x and the weights are kept for backward, and hooks may move them elsewhere."""
    sample = target.build(case, dtype, layout, seed).requires_grad()
    kept: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        kept.append(t)
        return t.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = target(sample)
    size = sum(t.numel() for t in sample.tensors()[: len(sample.tensors()) - (sample.args[-1] is not None)])
    saved = sum(t.numel() for t in kept if floating(t))
    if saved > size:
        raise AssertionError(f"{saved} elements saved where {size} are enough")
    g = upstream(y, seed)
    due = evaluate(target, sample, g)
    equal(Values(y.detach(), torch.autograd.grad(y, sample.tensors(), g)), due, "with hooks")


@THEME.kind(tag="core", first=1, fused=99)
def training(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """Ten steps of an optimiser follow the reference's."""
    sample = target.build(case, torch.float64, layout, seed)

    def train(function) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in sample.tensors()]
        optimiser = torch.optim.SGD(leaves, lr=1e-3, momentum=0.9)
        for _ in range(10):
            optimiser.zero_grad()
            function(*leaves).square().mean().backward()
            optimiser.step()
        return [t.detach() for t in leaves]

    for a, e in zip(train(target.function(sample)), train(target.truth_function(sample)), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-9)


@THEME.kind(tag="core", first=2)
def dispatcher_ops(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """The three ops called by themselves, as a loaded program calls them, are differentiable and the same."""
    sample = target.build(case, torch.float64, layout, seed)
    seen = op_arguments(target, sample)
    for suffix, (args, kwargs) in seen.items():
        op = target.op.ops[suffix]
        results = []
        for backend in (target.backend, "reference"):
            leaves = [a.detach().clone().requires_grad_() if floating(a) else a for a in args]
            tensors = [a for a in leaves if floating(a)]
            y = op(*leaves, **{**kwargs, "backend": backend})
            results.append([y, *torch.autograd.grad(y.sin().sum(), tensors)])
        for i, (a, e) in enumerate(zip(*results, strict=True)):
            torch.testing.assert_close(a, e, rtol=1e-11, atol=1e-11, msg=lambda t, s=suffix, i=i: f"{s} {i}: {t}")


@THEME.kind(tag="core", first=2, layouts=BOTH)
def many_sizes(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """Sizes one after another through one process: no plan is taken for another's."""
    sample = target.build(case, dtype, layout, seed)
    x, *rest = sample.tensors()
    for n, h, w in itertools.product((1, 3), (5, 8), (4, 9)):
        image = torch.randn(n, x.shape[1], h, w)
        last = torch.channels_last if layout == "nhwc" else torch.contiguous_format
        other = sample.replace([image.contiguous(memory_format=last), *rest])
        g = upstream(forward_shape(target, other), seed)
        judge(target, other, evaluate(target, other, g), g)
        again = Values(target(other), ())
        if not same_bits(again.output, target(other)):
            raise AssertionError(f"size {n}, {h}, {w}")
        assert_accurate(again.output, target.truth(other.map(Tensor.double)), target.truth(other), f"{n}, {h}, {w}")

"""torch.compile, torch.export, opcheck: the graph holds one neutral op, and computes what eager does."""

import io
import shutil
import warnings

import pytest
import torch
from torch import Tensor

from checks.derivatives import close
from checks.parity import evaluate, forward_shape, upstream
from checks.target import BOTH, Target, Theme
from lightkernels.testing import Case, Sample, assert_accurate, assert_keeps_layout, assert_same_bits

# The graph holds one neutral op: what stands behind it, PyTorch's own calls or the reference's, is all the same.
THEME = Theme(only=("cuda", "triton", "cpu", "reference"), brief=True)


def compiled(function, backend: str = "aot_eager", **options):
    torch._dynamo.reset()
    return torch.compile(function, backend=backend, fullgraph=True, **options)


def compare(actual, expected) -> None:
    for (what, a), (_, e) in zip(actual.named(), expected.named(), strict=True):
        assert_same_bits(a, e, what)
        if a.stride() != e.stride():
            raise AssertionError(f"{what}: strides {a.stride()} compiled, {e.stride()} in eager")


def call(function, sample: Sample) -> Tensor:
    return function(*sample.tensors())


@THEME.kind(tag="core", layouts=BOTH, turns=True, fused=3)
def full_graph(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """One graph, forward and backward, bit for bit as eager."""
    sample = target.build(case, dtype, layout, seed)
    g = upstream(forward_shape(target, sample), seed)
    function = compiled(target.function(sample))
    compare(evaluate(lambda s: call(function, s), sample, g), evaluate(target, sample, g))
    with torch.no_grad():
        assert_same_bits(call(function, sample), target(sample), "output without gradient")


def _resized(sample: Sample, n: int, h: int, w: int) -> Sample:
    x, *rest = sample.tensors()
    generator = torch.Generator().manual_seed(n * h * w)
    fresh = torch.randn(n, x.shape[1], h, w, generator=generator, dtype=x.dtype)
    last = x.is_contiguous(memory_format=torch.channels_last)
    return sample.replace(
        [fresh.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format), *rest]
    )


@THEME.kind(tag="core", first=3, layouts=BOTH, turns=True, fused=1)
def dynamic_sizes(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """One graph for every batch and image size: a second size must not compile again."""
    sample = target.build(case, dtype, layout, seed)
    function = compiled(target.function(sample), dynamic=True)
    # Sizes that happen to be equal at first are not taken for one and the same.
    with torch.fx.experimental._config.patch(use_duck_shape=False):
        evaluate(lambda s: call(function, s), sample, upstream(forward_shape(target, sample), seed))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for n, h, w in ((3, 11, 6), (5, 7, 10)):
            other = _resized(sample, n, h, w)
            g = upstream(forward_shape(target, other), seed)
            compare(evaluate(lambda s: call(function, s), other, g), evaluate(target, other, g))


@THEME.kind(tag="core", first=1, fused=1)
def few_recompiles(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """Without being told, ten sizes cost two compilations: the first, and one with sizes that vary."""
    sample = target.build(case, dtype, layout, seed)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    function = torch.compile(target.function(sample), backend=counter, fullgraph=True)
    with torch.no_grad():
        for i in range(10):
            other = _resized(sample, 2 + i, 7 + i, 9 + 2 * i)
            assert_same_bits(call(function, other), target(other), f"size {i}")
    if counter.frame_count > 2:
        raise AssertionError(f"{counter.frame_count} graphs for ten sizes")


@THEME.kind(tag="core", first=2)
def inductor(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """Through the real compiler, with work to fuse on both sides."""
    if not any(shutil.which(name) for name in ("g++", "clang++")):
        pytest.skip("no C++ compiler")
    with warnings.catch_warnings():
        # Its import uses deprecated parts of torch itself.
        warnings.simplefilter("ignore")

    sample = target.build(case, dtype, layout, seed)

    def around(function):
        return lambda *t: function(t[0].relu() + 1, *t[1:]).sigmoid() * 2

    g = upstream(forward_shape(target, sample), seed)
    function = compiled(around(target.function(sample)), backend="inductor")
    with warnings.catch_warnings():
        # The compiler's own modules, loaded at first use, use deprecated parts of torch.
        warnings.simplefilter("ignore", DeprecationWarning)
        actual = evaluate(lambda s: call(function, s), sample, g)
    same = evaluate(lambda s: call(around(target.truth_function(sample)), s), sample, g)
    wide = sample.map(Tensor.double)
    truth = evaluate(lambda s: call(around(target.truth_function(wide)), s), wide, g.double())
    for (what, a), (_, t), (_, b) in zip(actual.named(), truth.named(), same.named(), strict=True):
        assert_accurate(a, t, b, what, ulps=2)


@THEME.kind(tag="core", first=2, dtypes=(torch.float64,))
def compiled_transform(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """torch.func inside of torch.compile."""
    sample = target.build(case, dtype, layout, seed)
    tensors = sample.tensors()

    def gradient(function):
        return lambda *t: torch.func.grad(lambda w: function(t[0], w, *t[2:]).sin().sum())(t[1])

    close(
        compiled(gradient(target.function(sample)))(*tensors),
        gradient(target.truth_function(sample))(*tensors),
        "compiled gradient",
    )


@THEME.kind(tag="core", first=1, dtypes=(torch.float64,))
def compiled_double_backward(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """What AOT cannot do it refuses; eager double backward of the same function works before and after."""
    sample = target.build(case, dtype, layout, seed).requires_grad()
    function = compiled(target.function(sample), backend="eager")

    def second(f) -> list[Tensor]:
        grads = torch.autograd.grad(f(*sample.tensors()).sin().sum(), sample.tensors(), create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in grads), sample.tensors()))

    for a, e in zip(second(function), second(target.truth_function(sample)), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-9)


class Module(torch.nn.Module):
    """The call as a module of its parameters: everything but x."""

    def __init__(self, target: Target, sample: Sample) -> None:
        super().__init__()
        self.call = target.function(sample)
        self.weights = torch.nn.ParameterList(sample.tensors()[1:])

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x, *self.weights)


def _names(program: torch.export.ExportedProgram) -> set[str]:
    return {str(n.target) for n in program.graph.nodes if n.op == "call_function"}


def exported(module: Module, x: Tensor, strict: bool, **options) -> torch.export.ExportedProgram:
    with warnings.catch_warnings():
        # torch.export's own machinery warns of its internals; what it returns is what is judged here.
        warnings.simplefilter("ignore")
        return torch.export.export(module, (x,), strict=strict, **options)


@THEME.kind(tag="core", layouts=BOTH, turns=True, fused=2)
def export(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """Strict and not: the graph keeps one op, whatever backend traced it."""
    sample = target.build(case, dtype, layout, seed)
    module, x = Module(target, sample), sample.args[0]
    for strict in (False, True):
        program = exported(module, x, strict)
        if f"lightkernels.{target.name}.default" not in _names(program):
            raise AssertionError(f"strict={strict}: the op is not in the graph: {sorted(_names(program))}")
        y = program.module()(x)
        assert_same_bits(y, target(sample), f"strict={strict}")
        assert_keeps_layout(x, y, f"strict={strict}")


@THEME.kind(tag="core", first=2, fused=1)
def export_dynamic(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """One exported program for every batch and image size."""
    sample = target.build(case, dtype, layout, seed)
    module, x = Module(target, sample), sample.args[0]
    auto = torch.export.Dim.DYNAMIC
    program = exported(module, x, False, dynamic_shapes=({0: auto, 2: auto, 3: auto},))
    for n, h, w in ((2, 9, 8), (4, 12, 7)):
        other = _resized(sample, n, h, w)
        assert_same_bits(program.module()(other.args[0]), target(other), f"size {n}, {h}, {w}")


def _decomposed(target: Target, sample: Sample) -> torch.export.ExportedProgram:
    program = exported(Module(target, sample), sample.args[0], False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = torch.export.default_decompositions()
        table.update(target.op.decompositions())
        return program.run_decompositions(table)


@THEME.kind(tag="core", layouts=BOTH, turns=True, only=("reference",), fused=1)
def decomposed(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """The exported op decomposes to aten alone, for importers that know no other."""
    sample = target.build(case, dtype, layout, seed)
    program = _decomposed(target, sample)
    foreign = {n for n in _names(program) if not n.startswith(("aten.", "<built-in function getitem>"))}
    if foreign:
        raise AssertionError(f"not aten: {sorted(foreign)}")
    truth = target.truth(sample.map(Tensor.double))
    assert_accurate(program.module()(sample.args[0]), truth, target.truth(sample), "decomposed program")


@THEME.kind(tag="tiny", first=1, only=("reference",), fused=1)
def onnx(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """What the exported op decomposes to is known to one such importer, and computes the same there."""
    found = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    sample = target.build(case, dtype, layout, seed)
    x, run = sample.args[0], _decomposed(target, sample).module()

    class Plain(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return run(x)

    file = io.BytesIO()
    for parameter in run.parameters():
        parameter.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that needs no other package is the old one, and says so
        torch.onnx.export(Plain(), (x,), file, dynamo=False, input_names=["x"], opset_version=17)
    (y,) = ReferenceEvaluator(found.load_from_string(file.getvalue())).run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), target.truth(sample), rtol=1e-4, atol=1e-5)


def floating(a) -> bool:
    return isinstance(a, Tensor) and a.is_floating_point()


def op_arguments(target: Target, sample: Sample) -> dict[str, tuple]:
    """Arguments of the dispatcher ops of this call, as the operator itself makes them."""
    seen: dict[str, tuple] = {}

    class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            for suffix, op in target.op.ops.items():
                if func is op:
                    seen[suffix] = (args, dict(kwargs or {}))
            return func(*args, **(kwargs or {}))

    with Recorder():
        leaves = sample.requires_grad()
        target(leaves).sum().backward()
    return seen


OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


@THEME.kind(tag="core", layouts=BOTH, turns=True, fused=1)
def opcheck(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """Schema, fake, autograd registration and AOT dispatch of every op, with and without gradients."""
    sample = target.build(case, dtype, layout, seed)
    seen = op_arguments(target, sample)
    if set(seen) != set(target.op.ops):
        raise AssertionError(f"ops called: {sorted(seen)}, registered: {sorted(target.op.ops)}")
    for suffix, (args, kwargs) in seen.items():
        for grad in (False, True):
            given = [a.detach().clone().requires_grad_(grad) if floating(a) else a for a in args]
            tests = OPCHECKS if suffix and not target.op.bilinear else (*OPCHECKS, "test_aot_dispatch_dynamic")
            given = tuple(given), {**kwargs, "backend": target.backend}
            torch.library.opcheck(target.op.ops[suffix], *given, test_utils=tests)

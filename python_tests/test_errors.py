"""Bad input: the exact text, the type, and nothing allocated or computed before it."""

import re
from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

import lightkernels
from checks.target import Target, planted
from lightkernels import multi_dwconv2d

X = torch.randn(2, 4, 5, 6)
W3, W5 = torch.randn(4, 1, 3, 3), torch.randn(4, 1, 5, 5)
B = torch.randn(8)
F32 = "(float32, cpu)"


def row(error, text, x=X, weights=(W3, W5), bias=None, **kwargs):
    return pytest.param(error, f"multi_dwconv2d: {text}", (x, weights, bias), kwargs, id=text.split(";")[0])


SHAPES = [
    row(ValueError, f"x must have 4 dimensions [N, C, H, W]; got [4, 5, 6] {F32}.", X[0]),
    row(ValueError, f"x must have 4 dimensions [N, C, H, W]; got [1, 2, 4, 5, 6] {F32}.", X[None]),
    row(ValueError, "weights[1] must have an odd kernel size; got 4. Hint: an even kernel has no centre.",
        weights=[W3, torch.randn(4, 1, 4, 4)]),
    row(ValueError, "weights[0] must have an odd kernel size; got 0. Hint: an even kernel has no centre.",
        weights=[torch.randn(4, 1, 0, 0)]),
    row(ValueError, f"weights[0] must have shape [C, 1, k, k]; got [4, 1, 3, 5] {F32}.",
        weights=[torch.randn(4, 1, 3, 5)]),
    row(ValueError, f"weights[0] must have shape [C, 1, k, k]; got [4, 3, 3] {F32}.", weights=[W3[:, 0]]),
    row(ValueError, f"weights[0] must have shape [C, 1, k, k]; got [4, 2, 3, 3] {F32}.",
        weights=[torch.randn(4, 2, 3, 3)]),
    row(ValueError, "weights[0] must have 4 channels, as many as x; got 3.", weights=[W3[:3], W5]),
    row(ValueError, "weights[1] must have 4 channels, as many as x; got 3.", weights=[W3, W5[:3]]),
    row(ValueError, "weights must have at least one branch; got [].", weights=[]),
    row(ValueError, "weights must have 4 channels in all (split=True, x has 4); got 8.", split=True),
    row(ValueError, "weights[1] must have at least one channel (split=True); got 0.",
        x=X[:, :1], weights=[W3[:1], W5[:0]], split=True),
    row(ValueError, "split must be False with combine='add'; got True.",
        weights=[W3[:2], W5[:2]], split=True, combine="add"),
    row(ValueError, "split must be False with combine='cumulative'; got True.",
        weights=[W3[:2], W5[:2]], split=True, combine="cumulative"),
    row(ValueError, f"bias must have shape [8], the output channels; got [4] {F32}.", bias=B[:4]),
    row(ValueError, f"bias must have shape [8], the output channels; got [1, 8] {F32}.", bias=B[None]),
    row(ValueError, f"bias must have shape [4], the output channels; got [8] {F32}.", bias=B, combine="add"),
]  # fmt: skip

VALUES = [
    row(ValueError, "combine must be one of 'concat', 'add', 'cumulative'; got 'mean'.", combine="mean"),
    row(ValueError, "stride[0] must be at least 1; got 0.", stride=0),
    row(ValueError, "stride[1] must be at least 1; got -1.", stride=(1, -1)),
    row(ValueError, "stride[0] must be at most 2147483647; got 2147483648.", stride=2**31),
    row(ValueError, "dilations[0] must be at least 1; got 0.", dilations=0),
    row(ValueError, "dilations[1] must be at least 1; got -2.", dilations=(1, -2)),
    row(ValueError, "dilations[0] must be at most 2147483647; got 4611686018427387904.", dilations=2**62),
    row(ValueError, "dilations must be an int or one int a branch (2); got [1].", dilations=(1,)),
    row(ValueError, "dilations must be an int or one int a branch (2); got [1, 2, 3].", dilations=(1, 2, 3)),
    row(ValueError, "backend must be one of 'auto', 'cuda', 'cpu', 'triton', 'torch', 'reference'; got 'fast'.",
        backend="fast"),
]  # fmt: skip

TYPES = [
    row(TypeError, "x must be a tensor; got [1].", x=[1]),
    row(TypeError, "x must be a tensor; got None.", x=None),
    row(TypeError, "x must be float32, float64, bfloat16 or float16; got [2, 4, 5, 6] (int32, cpu).",
        x=X.int(), weights=[W3.int()]),
    row(TypeError, "weights[0] must have x's dtype float32; got [4, 1, 3, 3] (float64, cpu).", weights=[W3.double()]),
    row(TypeError, "weights[1] must have x's dtype float32; got [4, 1, 5, 5] (float16, cpu).", weights=[W3, W5.half()]),
    row(TypeError, "bias must have x's dtype float32; got [8] (float64, cpu).", bias=B.double()),
    row(TypeError, "bias must be a tensor; got 1.0.", bias=1.0),
    row(TypeError,
        f"weights must be a sequence of tensors; got [4, 1, 3, 3] {F32}. Hint: for one branch pass [weight].",
        weights=W3),
    row(TypeError, f"weights[0] must be a tensor; got list of [4, 1, 3, 3] {F32}, [4, 1, 5, 5] {F32}.",
        weights=[[W3, W5]]),
    row(TypeError, "weights must be a sequence of tensors; got None.", weights=None),
    row(TypeError, "weights must be a sequence of tensors; got 5.", weights=5),
    row(TypeError, "weights[1] must be a tensor; got 'a'.", weights=[W3, "a"]),
    row(TypeError, "combine must be a string; got 1.", combine=1),
    row(TypeError, "combine must be a string; got None.", combine=None),
    row(TypeError, "split must be a bool; got 1.", split=1),
    row(TypeError, "stride must be an int or a pair of ints; got 1.5.", stride=1.5),
    row(TypeError, "stride must be an int or a pair of ints; got True.", stride=True),
    row(TypeError, "stride must be an int or a pair of ints; got '2'.", stride="2"),
    row(TypeError, "stride must be an int or a pair of ints; got (1, 1, 1).", stride=(1, 1, 1)),
    row(TypeError, "stride must be an int or a pair of ints; got None.", stride=None),
    row(TypeError, "dilations must be an int or one int a branch; got 1.5.", dilations=1.5),
    row(TypeError, "dilations must be an int or one int a branch; got True.", dilations=True),
    row(TypeError, "dilations must be an int or one int a branch; got [1, 2.0].", dilations=[1, 2.0]),
    row(TypeError, "backend must be a string; got 3.", backend=3),
]  # fmt: skip

EAGER = [
    row(TypeError, "x must be float32, float64, bfloat16 or float16; got [2, 4, 5, 6] (complex64, cpu).",
        x=X.cfloat(), weights=[W3.cfloat()]),
    row(ValueError, "weights[0] must be on x's device cpu; got [4, 1, 3, 3] (float32, meta).", weights=[W3.to("meta")]),
    row(ValueError, "bias must be on x's device cpu; got [8] (float32, meta).", bias=B.to("meta")),
    row(ValueError, "weights[0] must be on x's device meta; got [4, 1, 3, 3] (float32, cpu).", x=X.to("meta")),
    row(TypeError, "weights[0] must be a tensor; got 'a'.", weights={"a": W3}),
    row(TypeError, "weights[0] must be a dense tensor; got 'torch.sparse_coo'. Hint: weights[0].to_dense() makes one.",
        weights=[W3.to_sparse()]),
    row(TypeError, "bias must be a dense tensor; got 'torch._mkldnn'. Hint: bias.to_dense() makes one.",
        bias=B.to_mkldnn()),
]  # fmt: skip


@contextmanager
def nothing_made():
    """Fails if a backend runs, or torch makes a tensor with data, inside."""

    def never(*args, **kwargs):
        raise AssertionError("something was computed before the error")

    code = SimpleNamespace(why_not=lambda spec: None, fwd=never, bwd_x=never, bwd_w=never)
    target = Target("lightkernels.ops.multi_dwconv2d", "cpu")
    pack = target.op.pack

    def only_meta(weights):
        return pack(weights) if all(w.is_meta for w in weights) else never()

    with planted(target, code), mock.patch.object(target.op, "pack", only_meta):
        yield


@pytest.mark.parametrize(("error", "text", "args", "kwargs"), SHAPES + VALUES + TYPES + EAGER)
def test_eager(error, text, args, kwargs):
    with nothing_made(), pytest.raises(error, match=f"^{re.escape(text)}$"):
        multi_dwconv2d(*args, **kwargs)


def test_a_layout_that_a_remembered_call_has_not():
    multi_dwconv2d(X, [W3], B[:4])
    for weights, bias in (([W3.to_sparse()], B[:4]), ([W3], B[:4].to_mkldnn())):
        with pytest.raises(TypeError, match="must be a dense tensor"):
            multi_dwconv2d(X, weights, bias)


@pytest.mark.parametrize(("error", "text", "args", "kwargs"), SHAPES + VALUES + TYPES)
def test_with_gradients(error, text, args, kwargs):
    """Through every other eager route too: gradients, functorch, forward AD, a dispatch mode."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    x, weights, bias = args

    def grad(t):
        return t.detach().requires_grad_() if isinstance(t, torch.Tensor) and t.is_floating_point() else t

    listed = [grad(w) for w in weights] if isinstance(weights, list | tuple) else weights
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        multi_dwconv2d(grad(x), listed, grad(bias), **kwargs)
    with Mode(), pytest.raises(error, match=f"^{re.escape(text)}$"):
        multi_dwconv2d(x, weights, bias, **kwargs)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(error, match=f"^{re.escape(text)}$"):
        multi_dwconv2d(x, weights, bias, **kwargs)
    if isinstance(x, torch.Tensor) and x.is_floating_point():
        with pytest.raises(error, match=f"^{re.escape(text)}$"):
            torch.func.vjp(lambda t: multi_dwconv2d(t, weights, bias, **kwargs), x)


def told(error: BaseException) -> str:
    """An error's text, with quotes as torch's repr of an inner error writes them."""
    return str(error).replace("\\'", "'")


@pytest.mark.parametrize(("error", "text", "args", "kwargs"), SHAPES + VALUES + TYPES)
def test_compiled(error, text, args, kwargs):
    torch._dynamo.reset()
    function = torch.compile(lambda *a: multi_dwconv2d(*a, **kwargs), backend="aot_eager", fullgraph=True)
    with pytest.raises(Exception) as caught:  # noqa: PT011  torch's own error, of several types, with our text
        function(*args)
    assert text in told(caught.value)


@pytest.mark.parametrize(("error", "text", "args", "kwargs"), SHAPES[:1] + SHAPES[7:11] + VALUES[:3] + TYPES[3:6])
@pytest.mark.parametrize("strict", [False, True])
def test_exported(error, text, args, kwargs, strict):
    class Module(torch.nn.Module):
        def forward(self, x, weights, bias):
            return multi_dwconv2d(x, weights, bias, **kwargs)

    with pytest.raises(Exception) as caught:  # noqa: PT011
        torch.export.export(Module(), args, strict=strict)
    assert text in told(caught.value)


def test_dispatcher_ops():
    """The registered ops check for themselves: a loaded program has no public function in front."""
    op = torch.ops.lightkernels
    values = ([3, 5], [4, 4], [1, 1], [1, 1], "concat", False)
    packed = torch.cat([W3.flatten(), W5.flatten()])
    y = op.multi_dwconv2d(X, packed, None, *values)
    size = "g must have the output's shape [2, 8, 5, 6]; got"
    rows = [
        (op.multi_dwconv2d, (X, packed[:-1], None), f"weight must be packed, of shape [136]; got [135] {F32}."),
        (op.multi_dwconv2d, (X[0], packed, None), f"x must have 4 dimensions [N, C, H, W]; got [4, 5, 6] {F32}."),
        (op.multi_dwconv2d_bwd_w, (y[:, :4], X), f"{size} [2, 4, 5, 6] {F32}."),
        (op.multi_dwconv2d_bwd_x, (y[..., :-1], packed, list(X.shape), False), f"{size} [2, 8, 5, 5] {F32}."),
    ]
    for call, args, text in rows:
        with pytest.raises(ValueError, match=f"^{re.escape('multi_dwconv2d: ' + text)}$"):
            call(*args, *values)


def test_use_backend():
    names = "'auto', 'cuda', 'cpu', 'triton', 'torch', 'reference'"
    for error, name, text in (
        (ValueError, "gpu", f"use_backend: backend must be one of {names}; got 'gpu'."),
        (TypeError, None, "use_backend: backend must be a string; got None."),
    ):
        with pytest.raises(error, match=f"^{re.escape(text)}$"), lightkernels.use_backend(name):
            pass


def test_explain():
    with pytest.raises(ValueError, match=r"^explain: op must be one of .*multi_dwconv2d.*; got 'conv9d'\.?$"):
        lightkernels.explain("conv9d", X)
    with pytest.raises(ValueError, match="at least one branch"):
        lightkernels.explain("multi_dwconv2d", X, [])


@pytest.mark.parametrize(
    "wrong",
    [
        {"stride": 1.0},
        {"stride": True},
        {"stride": (1.0, 1)},
        {"dilations": True},
        {"dilations": (1.0,)},
        {"split": 0},
    ],
    ids=str,
)
def test_a_remembered_plan_lets_no_wrong_type_pass(wrong):
    """1.0 and True are equal to 1 and hash alike, so the plan of a good call would be found for them."""
    x, w = torch.randn(1, 2, 5, 5), torch.randn(2, 1, 3, 3)
    for good in ({}, {"stride": (1, 1)}, {"dilations": (1,)}):
        lightkernels.multi_dwconv2d(x, [w], **good)
    with pytest.raises(TypeError, match=f"{next(iter(wrong))} must be"):
        lightkernels.multi_dwconv2d(x, [w], **wrong)

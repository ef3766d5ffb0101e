"""rsdc2d against a second oracle, over random arguments; bad taps; baselines."""

import gc
import re
import sys

import fresh
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.func import grad, vmap

import lightkernels
from checks.parity import upstream
from lightkernels import rsdc2d
from lightkernels._core import measure
from lightkernels._core import taps as sets
from lightkernels.ops.rsdc2d import OP, baselines, cases
from lightkernels.testing import assert_accurate, assert_same_bits, embed, guarded

BACKENDS = [b for b in OP.backends if lightkernels.explain("rsdc2d", *cases.CASES[0].build().args, kernel_size=5,
            backend=b).chosen == b]  # fmt: skip


def dense(weight, taps, k):
    """[Co, C / groups, k, k]: zero but for the taps, cell by cell."""
    full = torch.zeros(*weight.shape[:2], k, k, dtype=weight.dtype)
    for o in range(weight.shape[0]):
        for t, cell in enumerate(taps[o * len(taps) // weight.shape[0]].tolist()):
            full[o, :, cell // k, cell % k] = weight[o, :, t]
    return full


def second_oracle(x, weight, taps, bias, kernel_size, stride, padding, dilation, groups):
    if padding == "same":
        padding = tuple(d * (kernel_size // 2) for d in dilation)
    return F.conv2d(x, dense(weight, taps, kernel_size), bias, stride, padding, dilation, groups)


@st.composite
def calls(draw):
    def pair(low, high):
        return (draw(st.integers(low, high)), draw(st.integers(low, high)))

    k = draw(st.sampled_from((3, 5, 7, 9)))
    groups, part, each = (draw(st.integers(1, 3)) for _ in range(3))
    values = {
        "kernel_size": k,
        "stride": pair(1, 3),
        "padding": draw(st.one_of(st.just("same"), st.tuples(st.integers(0, 6), st.integers(0, 6)))),
        "dilation": pair(1, 2),
        "groups": groups,
    }
    least = [1 if values["padding"] == "same" else max(1, d * (k - 1) + 1 - 2 * p) for d, p in zip(
        values["dilation"], (9, 9) if values["padding"] == "same" else values["padding"], strict=True)]  # fmt: skip
    count = draw(st.integers(1, k * k))
    scope = draw(st.sampled_from((1, groups, groups * each)))
    shape = (draw(st.integers(0, 2)), groups * part, *(low + draw(st.integers(0, 12)) for low in least))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def whole(*size):
        return torch.randint(-9, 10, size, generator=generator).double()

    layout = draw(st.sampled_from((torch.contiguous_format, torch.channels_last)))
    x, weight = whole(*shape).contiguous(memory_format=layout), whole(groups * each, part, count)
    taps = sets.draw(scope, count, k, generator=generator)
    return x, weight, taps, whole(groups * each) if draw(st.booleans()) else None, values


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(call=calls())
def test_the_second_oracle_agrees(backend, call):
    """Whole numbers: equal bit for bit, forward and every gradient."""
    *tensors, values = call
    x, weight, taps, bias = tensors
    leaves = [t for t in (x, weight, bias) if t is not None]
    results = []
    for function in (lambda *t, **v: rsdc2d(*t, **v, backend=backend), second_oracle):
        fresh = [t.clone().requires_grad_() for t in leaves]
        y = function(fresh[0], fresh[1], taps, fresh[2] if bias is not None else None, **values)
        g = upstream(y, 3, integers=True)
        results.append([y.detach(), *torch.autograd.grad(y, fresh, g)])
    for a, e in zip(*results, strict=True):
        assert_same_bits(a + 0, e + 0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_second_oracle_agrees_on_real_numbers(backend, dtype):
    for case in cases.CASES:
        if "core" in case.tags:
            sample = case.build(4, dtype)
            wide = sample.map(torch.Tensor.double)
            truth = second_oracle(*wide.args, **{**sample.kwargs, "dilation": (1, 1)})
            same = second_oracle(*sample.map(torch.Tensor.float).args, **{**sample.kwargs, "dilation": (1, 1)})
            assert_accurate(rsdc2d(*sample.args, **sample.kwargs, backend=backend), truth, same.to(dtype), case.name, 2)


@pytest.mark.parametrize("first", [0, 3])
def test_depthwise_planes_that_bypass_the_caches(first):
    """More than a megabyte of outputs, planes that end within a cache line, tensors that begin within one."""
    shape = (2, 67, 45, 47)
    x = torch.randint(-8, 9, (2 * 67 * 45 * 47 + first,)).float()[first:].view(shape).requires_grad_()
    weight, taps = torch.randint(-8, 9, (67, 1, 9)).float(), sets.draw(67, 9, 5)
    g, bias = torch.randint(-8, 9, shape).float(), torch.randint(-8, 9, (67,)).float()
    y = rsdc2d(x, weight, taps, bias, kernel_size=5, groups=67)
    truth = second_oracle(x, weight, taps, bias, 5, (1, 1), "same", (1, 1), 67)
    assert torch.equal(y, truth)
    assert torch.equal(*(torch.autograd.grad(out, x, g)[0] for out in (y, truth)))


@pytest.mark.parametrize(
    ("size", "padding", "dilation", "count"),
    [((56, 40), 2, 1, 9), ((29, 23), 2, 1, 25), ((61, 55), 0, 9, 9), ((40, 60), 0, (1, 11), 6)],
)
def test_depthwise_planes_of_all_tiles(size, padding, dilation, count):
    """High and low tiles, narrow last columns, windows far to the right, many taps of a column, many images."""
    pair = dilation if isinstance(dilation, tuple) else (dilation, dilation)
    x = torch.randint(-8, 9, (11, 3, *size)).float().requires_grad_()
    weight, taps, bias = torch.randint(-8, 9, (3, 1, count)).float(), sets.draw(3, count, 5), torch.randn(3).round()
    y = rsdc2d(x, weight, taps, bias, kernel_size=5, padding=padding, dilation=dilation, groups=3)
    truth = second_oracle(x, weight, taps, bias, 5, (1, 1), padding, pair, 3)
    g = torch.randint(-8, 9, y.shape).float()
    assert torch.equal(y, truth)
    assert torch.equal(*(torch.autograd.grad(out, x, g)[0] for out in (y, truth)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_padding_around_no_pixels_gives_the_bias(backend, layout):
    x = torch.empty(2, 4, 0, 8).contiguous(memory_format=layout)
    bias, values = torch.randn(6), {"kernel_size": 5, "padding": 5, "backend": backend}
    for b in (None, bias):
        y = rsdc2d(x, torch.randn(6, 4, 9), sets.draw(1, 9, 5), b, **values)
        assert torch.equal(y, (torch.zeros(6) if b is None else b)[:, None, None].expand(2, 6, 6, 14))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("groups", "k"), [(1, 1), (1, 5), (8, 3)])
def test_padding_much_wider_than_the_window(groups, k, layout):
    """A row has more outputs than there are inputs and zeros from one row to the next."""
    x = torch.randint(-9, 10, (2, 16, 9, 8)).double().contiguous(memory_format=layout).requires_grad_()
    weight, bias = torch.randint(-9, 10, (16, 16 // groups, 1)).double().requires_grad_(), torch.arange(16).double()
    taps = sets.draw(16, 1, k)
    y = rsdc2d(x, weight, taps, bias, kernel_size=k, padding=45, groups=groups)
    due = second_oracle(x, weight, taps, bias, k, (1, 1), 45, (1, 1), groups)
    g = upstream(y, 3, integers=True)
    results = [[out, *torch.autograd.grad(out, (x, weight), g)] for out in (y, due)]
    for a, e in zip(*results, strict=True):
        assert_same_bits(a.detach() + 0, e.detach() + 0)


@pytest.mark.parametrize("scope", [1, 2, 4])
def test_a_batch_of_tap_sets(scope):
    """vmap over the taps, alone, with the weights, and under a gradient; an ensemble of models has its own sets."""
    x, weight = torch.randn(2, 4, 6, 7, dtype=torch.float64), torch.randn(3, 4, 2, 9, dtype=torch.float64)
    taps = torch.stack([sets.draw(scope, 9, 5) for _ in range(3)])

    def call(x, w, t):
        return rsdc2d(x, w, t, kernel_size=5, groups=2)

    def slope(x, w, t):
        return grad(lambda x, w: call(x, w, t).sin().sum(), argnums=(0, 1))(x, w)

    for function in (call, slope):
        for dims, at in (((None, 0, 0), 0), ((None, None, 0), 0), ((None, 0, 1), 1), ((None, 0, None), None)):
            w = weight if dims[1] is not None else weight[0]
            t = taps[0] if at is None else taps.movedim(0, at)
            many = torch.utils._pytree.tree_leaves(vmap(function, dims)(x, w, t))
            for i in range(3):
                one = function(x, w[i] if dims[1] is not None else w, taps[0 if at is None else i])
                for a, e in zip(many, torch.utils._pytree.tree_leaves(one), strict=True):
                    torch.testing.assert_close(a[i], e, rtol=1e-11, atol=1e-11)


X, W = torch.randn(1, 4, 6, 6), torch.randn(4, 4, 3)
GOOD = torch.tensor([[0, 7, 24]])


def wrong(taps, kernel_size=5, weight=W, x=X, **values):
    return lambda: rsdc2d(x, weight, taps, kernel_size=kernel_size, **values)


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (wrong(torch.tensor([[0, 7, 7]])), ValueError, "taps[0] must have no cell twice; got [0, 7, 7]. Hint: cell 7"),
        (wrong(torch.tensor([[0, 25, 1]])), ValueError, "taps[0, 1] must be from 0 to 24; got 25. Hint: a window of 5"),
        (wrong(torch.tensor([[0, 1, -1]])), ValueError, "taps[0, 2] must be from 0 to 24; got -1."),
        (wrong(GOOD, 3), ValueError, "taps[0, 2] must be from 0 to 8; got 24."),
        (wrong(GOOD.float()), TypeError, "taps must be int64; got [1, 3] (float32, cpu). Hint: taps are cells"),
        (wrong(GOOD.int()), TypeError, "taps must be int64; got [1, 3] (int32, cpu)."),
        (wrong([[0, 7, 24]]), TypeError, "taps must be a tensor; got [[0, 7, 24]]."),
        (wrong(GOOD[0]), ValueError, "taps must have shape [S, T], one set of T cells a row; got [3] (int64, cpu)."),
        (wrong(GOOD.repeat(3, 1)), ValueError, "taps must have 1 (layer), 1 (group) or 4 (filter) sets of cells; got"),
        (wrong(torch.arange(10)[None], 3), ValueError, "taps[0, 9] must be from 0 to 8; got 9."),
        (wrong(GOOD[:, :2]), ValueError, "weight must have shape [4, 4, 2]; got [4, 4, 3] (float32, cpu)."),
        (wrong(GOOD, weight=torch.randn(4, 4, 3, 3)), ValueError, "weight must have shape [4, 4, 3]; got [4, 4, 3, 3] "
         "(float32, cpu). Hint: RSDC2d.from_conv2d converts a Conv2d."),
        (wrong(GOOD, 4), ValueError, "taps[0, 2] must be from 0 to 15; got 24."),
        (wrong(torch.tensor([[0, 1, 2]]), 4), ValueError, "kernel_size must be odd; got 4."),
        (wrong(GOOD, 0), ValueError, "kernel_size must be odd; got 0."),
        (wrong(GOOD, 2**40 + 1), ValueError, "kernel_size must be at most 2147483647; got 1099511627777."),
        (wrong(GOOD.to_sparse()), TypeError, "taps must be a dense tensor; got 'torch.sparse_coo'."),
        (wrong(GOOD, x=X[:, :0], weight=W[:, :0]), ValueError, "x must have at least one channel; got [1, 0, 6, 6]"),
        (wrong(GOOD, dilation=2**62), ValueError, "dilation[0] must be at most 2147483647; got 4611686018427387904."),
        (wrong(GOOD, padding=(2, 2**70)), ValueError, "padding[1] must be at most 2147483647; got"),
        (wrong(GOOD, weight=W.to_sparse()), TypeError, "weight must be a dense tensor; got 'torch.sparse_coo'."),
        (wrong(GOOD, 5.0), TypeError, "kernel_size must be an int; got 5.0."),
        (wrong(GOOD, stride=0), ValueError, "stride[0] must be at least 1; got 0."),
        (wrong(GOOD, stride=True), TypeError, "stride must be an int or a pair of ints; got True."),
        (wrong(GOOD, padding="valid"), ValueError, "padding must be an int, a pair of ints or 'same'; got 'valid'."),
        (wrong(GOOD, padding=-1), ValueError, "padding[0] must be at least 0; got -1."),
        (wrong(GOOD, groups=3), ValueError, "groups must divide the 4 channels of x; got 3."),
        (wrong(GOOD, x=X[:, :, :3], padding=0), ValueError, "H of x must hold a window of 5 with padding 0; got 3."),
        (wrong(GOOD, x=X.double()), TypeError, "weight must have x's dtype float64; got [4, 4, 3] (float32, cpu)."),
        (wrong(GOOD, x=X[0]), ValueError, "x must have 4 dimensions [N, C, H, W]; got [4, 6, 6] (float32, cpu)."),
        (wrong(GOOD.to("meta")), ValueError, "taps must be on x's device cpu; got [1, 3] (int64, meta)."),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_by_name(call, kind, text):
    call_again = (call, call)
    for one in call_again:
        with pytest.raises(kind, match="^" + re.escape("rsdc2d: " + text)):
            one()


@pytest.mark.parametrize(
    ("groups", "sets_", "count", "more", "ways"),
    [
        (1, 1, 9, {}, "fwd matrix product over vectors of channels, bwd_x matrix product over vectors of channels"),
        (1, 64, 9, {}, "fwd each filter's taps over vectors of pixels, bwd_x matrix product over vectors of channels"),
        (1, 64, 18, {}, "fwd masked dense window, bwd_x matrix product over vectors of channels, bwd_w masked dense"),
        (64, 64, 9, {}, "fwd depthwise with zeros between the taps, bwd_x depthwise"),
        (
            16,
            64,
            9,
            {},
            "fwd each filter's taps over vectors of pixels, bwd_x each filter's taps over vectors of pixels",
        ),
        (1, 1, 9, {"dilation": 500}, "fwd tap by tap, bwd_x tap by tap, bwd_w tap by tap"),
        (1, 1, 9, {"dilation": 2**29}, "fwd tap by tap, bwd_x tap by tap, bwd_w tap by tap"),
        (1, 1, 9, {"stride": 2**31 - 1}, "fwd matrix product over vectors of channels"),
    ],
)
def test_explain_tells_how_each_pass_is_computed(groups, sets_, count, more, ways):
    pytest.importorskip("lightkernels._C")
    x, weight = torch.randn(2, 64, 14, 14), torch.randn(64, 64 // groups, count)
    values = {"kernel_size": 5, "groups": groups, "backend": "cpu", **more}
    told = lightkernels.explain("rsdc2d", x, weight, sets.draw(sets_, count, 5), **values)
    assert told.config.startswith(ways)
    if "dilation" not in more:  # what is said to run does
        tensors = (x.requires_grad_(), weight.requires_grad_(), sets.draw(sets_, count, 5))
        rsdc2d(*tensors, **values).sum().backward()


@pytest.mark.parametrize(("width", "way"), [(15, "with zeros between the taps"), (16, "plane by plane")])
def test_explain_tells_which_depthwise_rows_fill_vectors(width, way):
    pytest.importorskip("lightkernels._C")
    x, taps = torch.randn(2, 3, 9, width), sets.draw(3, 9, 5)
    told = lightkernels.explain("rsdc2d", x, torch.randn(3, 1, 9), taps, kernel_size=5, groups=3, backend="cpu")
    assert told.config == ", ".join(f"{name} depthwise{',' * (width > 15)} {way}" for name in ("fwd", "bwd_x", "bwd_w"))


# Channels, filters, groups, sets, taps, and what else: one for each kind of kernel.
WILD = {
    "dense": (32, 32, 1, 1, 9, {}),
    "groups": (32, 32, 2, 2, 9, {"stride": 2}),
    "filters": (16, 64, 1, 64, 9, {}),
    "window": (16, 64, 1, 64, 18, {}),
    "tiny": (64, 16, 16, 16, 9, {}),
    "depthwise": (32, 32, 32, 32, 9, {}),
    "strided": (8, 8, 8, 8, 9, {"stride": 2, "dilation": 2, "padding": 4}),
    "far": (8, 8, 1, 1, 9, {"dilation": 500, "padding": 1000}),
}


@pytest.mark.skipif("cpu" not in BACKENDS, reason="without the native core")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", WILD)
def test_no_kernel_leaves_its_buffers_whatever_the_taps_are(name, layout):
    """The operator of compiled code checks no taps: cells outside the window count as none, repeated ones twice."""
    c, filters, groups, scope, count, more = WILD[name]
    right = sets.draw(scope, count, 5, generator=torch.Generator().manual_seed(0))
    steps = [[more.get(k, d)] * 2 for k, d in (("stride", 1), ("padding", 2), ("dilation", 1))]

    def passes(x, w, taps, g=None):
        rest = (taps, filters, 5, *steps, groups)
        y = torch.ops.lightkernels.rsdc2d(x, w, None, *rest, backend="cpu")
        g = upstream(y, 3, integers=True) if g is None else g
        nhwc = layout is torch.channels_last
        gx = torch.ops.lightkernels.rsdc2d_bwd_x(g, w, list(x.shape), nhwc, *rest, backend="cpu")
        return g, y, gx, torch.ops.lightkernels.rsdc2d_bwd_w(g, x, *rest, backend="cpu")

    for dtype, wild in (
        (torch.float32, (-1, 25)),
        (torch.bfloat16, (2**40, -(2**63))),
        (torch.float64, (2**63 - 1, 26)),
    ):
        x = torch.randint(-3, 4, (2, c, 9, 17)).to(dtype).contiguous(memory_format=layout)
        w = torch.randint(-3, 4, (filters, c // groups, count)).to(dtype)
        outside, here = right.clone(), torch.ones_like(w)
        outside[:, 3], here[:, :, 3] = wild[0], 0
        outside[0, 5], here[: filters // scope, :, 5] = wild[1], 0  # of the first set alone
        twice, both = right.clone(), w.clone()
        twice[:, 3] = right[:, 4]
        both[:, :, 3], both[:, :, 4] = 0, w[:, :, 3] + w[:, :, 4]
        for cells, same in ((outside, w * here), (twice, both)):
            g, y, gx, gw = passes(x, same, right)
            gw = gw * here if cells is outside else gw.index_copy(2, torch.tensor([3]), gw[:, :, 4:5])
            held = [embed(t, 3) for t in (x, w, cells, g)]
            with guarded(3):
                found = passes(*(one.tensor for one in held))
            for one in held:
                one.check(name)
            for a, e in zip(found[1:], (y, gx, gw), strict=True):
                assert_same_bits(a + 0, e + 0)


def test_taps_are_read_once_for_a_tensor_and_its_version(monkeypatch):
    reads = []
    right = sets.check_values
    monkeypatch.setattr(sets, "check_values", lambda *args: reads.append(args) or right(*args))
    taps = GOOD.clone()
    for _ in range(3):
        rsdc2d(X, W, taps, kernel_size=5)
    assert len(reads) == 1
    rsdc2d(X, W, taps, kernel_size=7)
    taps[0, 0] = 3
    for _ in range(2):
        rsdc2d(X, W, taps, kernel_size=5)
    assert len(reads) == 3
    taps[0, 0] = 7
    with pytest.raises(ValueError, match="no cell twice"):
        rsdc2d(X, W, taps, kernel_size=5)
    gc.collect()
    known = len(sets._checked)
    del taps, reads[:]
    gc.collect()
    assert len(sets._checked) == known - 1


def test_taps_changed_between_forward_and_backward_are_an_error():
    taps, x = GOOD.clone(), X.clone().requires_grad_()
    y = rsdc2d(x, W, taps, kernel_size=5)
    taps[0, 0] = 3
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_compiled_code_takes_other_taps_without_compiling_again():
    torch._dynamo.reset()
    function = torch.compile(lambda t: rsdc2d(X, W, t, kernel_size=5), backend="aot_eager", fullgraph=True)
    function(GOOD)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            taps = sets.draw(1, 3, 5)
            assert_same_bits(function(taps), rsdc2d(X, W, taps, kernel_size=5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("scope", "groups", "stride"), [("layer", 1, 1), ("group", 2, 2), ("filter", 2, 1)])
def test_every_baseline_is_right_in_every_pass(dtype, scope, groups, stride):
    case = cases.case("small", (2, 4, 7, 6), 6, 5, scope=scope, groups=groups, stride=stride, bias=False)
    x, weight, taps, _ = case.build(0, dtype).args
    values = {"taps": taps, "kernel_size": 5, "stride": stride, "groups": groups}
    entries = measure.baselines("rsdc2d", **values, dtype=dtype, sixteen="both")
    forms = {"layer": 4, "group": 3, "filter": 1}[scope] * (2 if dtype is torch.bfloat16 else 1)
    assert len(entries) == 2 * forms
    g = torch.randn(2, 6, -(-7 // stride), -(-6 // stride)).to(dtype)
    for kind in measure.PASSES:
        truth = baselines.truth(x, [weight], g, kind=kind, **values)
        for entry in [*entries, *baselines.ours(**values, backend="reference")]:
            outputs = entry.results(kind, entry.call(kind, x, [weight], g)())
            measure.check(entry.label, outputs, truth)


GUARDED = """
import ctypes, mmap, torch
from lightkernels import rsdc2d

page = mmap.PAGESIZE
room = mmap.mmap(-1, 3 * page)
first = ctypes.addressof(ctypes.c_char.from_buffer(room))
for at in (first, first + 2 * page):
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(at), page, 0) == 0
taps, w = torch.arange(25)[None], torch.ones(1, 1, 25)
for step in (0, 1, 2):
    size = 23 * step + 32
    for at in (page, 2 * page - 4 * size):
        x = torch.frombuffer(room, dtype=torch.float32, offset=at, count=size).copy_(torch.arange(size))
        x = x.as_strided((1, 1, 24, 32), (size, size, step, 1))
        y = rsdc2d(x, w, taps, kernel_size=5, backend="cpu")
        assert torch.equal(y, rsdc2d(x.contiguous(), w, taps, kernel_size=5, backend="reference"))
print('"done"')
"""


@pytest.mark.skipif(sys.platform != "linux", reason="pages that nobody may read, as Linux makes them")
def test_rows_that_share_memory_are_read_within_it():
    """Expanded or overlapping rows, with a page that cannot be read before the first or after the last of them."""
    assert fresh.run(GUARDED) == "done"


@pytest.mark.parametrize("shape", [(1, 1, 20, 20), (2, 1, 9, 33)])
def test_threads_change_no_bit_of_a_weight_gradient(shape):
    """Also where there are fewer planes than threads."""
    channels, before, found = shape[1], torch.get_num_threads(), []
    x, g, weight = torch.randn(shape), torch.randn(shape), torch.randn(channels, 1, 9, requires_grad=True)
    taps = torch.stack([torch.randperm(25)[:9] for _ in range(channels)])
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y = rsdc2d(x, weight, taps, kernel_size=5, groups=channels)
            found += torch.autograd.grad(y, weight, g)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])

"""RSDC2d: nn.Conv2d's meanings, its tap sets, state, conversion and picture. The arithmetic is tested with the op."""

import copy
import io
import itertools
import pickle
import sys

import fresh
import pytest
import torch
import torch.multiprocessing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from lightkernels.nn import RSDC2d
from lightkernels.testing import assert_same_bits

MODES = ("zeros", "reflect", "replicate", "circular")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def layer_of(*args, seed=0, **kwargs):
    torch.manual_seed(seed)
    return RSDC2d(*args, **{"generator": seeded(seed), "dtype": torch.float64, **kwargs})


@pytest.mark.parametrize("padding_mode", MODES)
@pytest.mark.parametrize(
    ("args", "more"),
    [
        ((4, 6), {}),
        ((4, 6, 7, 2), {"scope": "layer", "bias": False}),
        ((4, 6, (3, 3), (1, 2), (2, 1), (2, 1), 2), {"scope": "group", "taps": 4}),
        ((4, 4, 5, 2, "valid", 1, 4), {"center": "always"}),
        ((4, 8, 5, 2, 3, 1, 2, False), {"taps": 25}),
        ((4, 2, 1), {"taps": 1}),
    ],
)
def test_is_its_dense_convolution(args, more, padding_mode):
    layer = layer_of(*args, padding_mode=padding_mode, **more)
    x = torch.randn(2, 4, 9, 10, dtype=torch.float64)
    conv = layer.to_conv2d()
    assert type(conv) is nn.Conv2d and all(isinstance(p, int) for p in conv.padding)
    y = layer(x)
    torch.testing.assert_close(y, conv(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer(x[0]), y[0], rtol=0, atol=0)
    assert int((conv.weight != 0).sum()) == layer.weight.numel()


@st.composite
def layers(draw):
    """Arguments by position as nn.Conv2d has them, the rest by name, and the smallest sides of an image."""

    def pair(low, high):
        return (draw(st.integers(low, high)), draw(st.integers(low, high)))

    k, groups, dilation = draw(st.sampled_from((3, 5, 7, 9))), draw(st.integers(1, 3)), pair(1, 2)
    padding = draw(
        st.one_of(st.sampled_from(("same", "valid")), st.integers(0, 4), st.tuples(*[st.integers(0, 4)] * 2))
    )
    channels = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 3))
    args = (*channels, k, pair(1, 3), padding, dilation, groups, draw(st.booleans()), draw(st.sampled_from(MODES)))
    named = {"taps": draw(st.integers(1, k * k)), "scope": draw(st.sampled_from(("filter", "group", "layer")))}
    # The whole window, and more than the padding, which a mirror has to be.
    sides = [max(5, d * (k - 1) + 1) + draw(st.integers(0, 5)) for d in dilation]
    return args, {**named, "center": draw(st.sampled_from(("free", "always")))}, sides, draw(st.integers(0, 2**31))


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(drawn=layers())
def test_any_layer_is_its_dense_convolution(drawn):
    """Whole numbers: equal bit for bit, with every padding mode, and so are the gradients."""
    args, named, sides, seed = drawn
    layer, g = layer_of(*args, seed=seed, **named), seeded(seed)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randint(-9, 10, p.shape, generator=g))
    x = torch.randint(-9, 10, (2, args[0], *sides), generator=g).double().requires_grad_()
    conv = layer.to_conv2d()
    y, due = layer(x), conv(x)
    assert_same_bits(y.detach() + 0, due.detach() + 0)
    up = torch.randint(-9, 10, y.shape, generator=g).double()
    for a, e in zip(*(torch.autograd.grad(out, x, up) for out in (y, due)), strict=True):
        assert_same_bits(a + 0, e + 0)


def test_positions_are_those_of_conv2d():
    args = (4, 6, 3, 2, 1, 1, 2, False, "circular", "cpu", torch.float64)
    layer, conv = RSDC2d(*args), nn.Conv2d(*args)
    for name in (
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "padding_mode",
    ):
        assert getattr(layer, name) == getattr(conv, name), name
    assert layer.bias is None and layer.weight.dtype is torch.float64
    with torch.no_grad():
        conv.weight.copy_(layer.weight.view(conv.weight.shape))  # all nine cells of a 3x3, in order
    x = torch.randn(2, 4, 8, 7, dtype=torch.float64)
    torch.testing.assert_close(layer(x), conv(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("scope", "count"), [("filter", 12), ("group", 2), ("layer", 1)])
def test_sets(scope, count):
    taps = layer_of(4, 12, groups=2, scope=scope).taps
    assert taps.shape == (count, 9) and taps.dtype is torch.int64
    assert all(len(set(row)) == 9 and row == sorted(row) and row[0] >= 0 and row[-1] < 25 for row in taps.tolist())


def chi_square(counts, expected):
    return float(((counts - expected) ** 2 / expected).sum())


def test_every_set_is_equally_likely():
    """All 84 sets of 3 out of 9 cells: 83 degrees of freedom, 140 is exceeded once in ten thousand."""
    taps = RSDC2d(1, 42_000, 3, taps=3, generator=seeded()).taps
    number = {c: i for i, c in enumerate(itertools.combinations(range(9), 3))}
    seen = torch.bincount(torch.tensor([number[tuple(row)] for row in taps.tolist()]), minlength=84).double()
    assert 30 < chi_square(seen, 500.0) < 140


def test_the_middle_cell_always():
    """The others are uniform: 24 cells, 8 of them in each set; 23 degrees of freedom."""
    taps = RSDC2d(1, 6_000, 5, center="always", generator=seeded()).taps
    seen = torch.bincount(taps.flatten(), minlength=25).double()
    assert seen[12] == 6_000 and bool((taps == 12).sum(1).eq(1).all())
    others = torch.cat([seen[:12], seen[13:]])
    assert chi_square(others, 2_000.0) * 24 / 23 * 3 / 2 < 60
    free = torch.bincount(RSDC2d(1, 6_000, 5, generator=seeded()).taps.flatten(), minlength=25).double()
    assert abs(free[12] - 2_160) < 160


def test_a_generator_reproduces():
    first, second, other = (RSDC2d(3, 8, generator=seeded(s)).taps for s in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)
    torch.manual_seed(5)
    first = RSDC2d(3, 8).taps
    torch.manual_seed(5)
    assert torch.equal(RSDC2d(3, 8).taps, first)
    before = torch.get_rng_state()
    RSDC2d(3, 8, generator=seeded()).resample_taps()
    assert not torch.equal(torch.get_rng_state(), before)  # its weights, as nn.Conv2d's
    layer = RSDC2d(3, 8, generator=seeded())
    before = torch.get_rng_state()
    layer.resample_taps()
    assert torch.equal(torch.get_rng_state(), before)


def test_initialisation_has_the_fan_in_of_the_taps():
    torch.manual_seed(0)
    layer = RSDC2d(64, 512, 7, groups=2)
    bound = (32 * 9) ** -0.5
    for t in (layer.weight.detach(), layer.bias.detach()):
        assert 0.97 * bound < float(t.abs().max()) <= bound
    assert abs(float(layer.weight.detach().std()) / (bound / 3**0.5) - 1) < 0.01
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 512, 3, groups=2)
    assert abs(float(layer.weight.detach().std() / conv.weight.detach().std()) - 1) < 0.01


X = torch.randn(2, 4, 8, 8, dtype=torch.float64)


@pytest.mark.parametrize("resample", ["never", "epoch", "forward"])
def test_resampling_changes_what_it_should_and_nothing_else(resample):
    layer = layer_of(4, 6, resample=resample)
    assert layer.training
    state = {name: t.clone() for name, t in layer.state_dict().items()}
    storage = layer.taps.data_ptr()

    def unchanged(*names):
        now = layer.state_dict()
        return all(torch.equal(now[name], state[name]) for name in names)

    layer.train()  # before anything was trained: still the first sets
    first, second = layer(X), layer(X)
    assert torch.equal(first, second) == (resample != "forward")
    assert unchanged("weight", "bias", "taps")
    layer.eval()
    stored = layer(X)
    assert torch.equal(layer(X), stored)
    torch.testing.assert_close(stored, layer.to_conv2d()(X), rtol=1e-12, atol=1e-12)
    assert torch.equal(first, stored) == (resample != "forward")
    layer.train()
    assert unchanged("weight", "bias") and unchanged("taps") == (resample != "epoch")
    assert layer.taps.data_ptr() == storage
    state["taps"] = layer.taps.clone()
    layer.train()
    layer.eval()
    layer(X)
    layer.train()  # nothing was trained in between
    assert unchanged("weight", "bias", "taps")


def test_resampling_at_each_forward_is_differentiated_with_its_own_taps():
    layer = layer_of(4, 6, resample="forward")
    kept = copy.deepcopy(layer.generator)
    first, second = layer(X), layer(X)
    grads = torch.autograd.grad(first.sum() + 2 * second.sum(), layer.weight)[0]
    due = torch.zeros_like(grads)
    for scale in (1, 2):
        again = layer_of(4, 6, seed=0)
        again.generator = kept
        again.resample_taps()
        due += scale * torch.autograd.grad(again(X).sum(), again.weight)[0]
    torch.testing.assert_close(grads, due, rtol=1e-12, atol=1e-12)


def test_resampling_compiles():
    torch._dynamo.reset()
    for resample in ("epoch", "forward"):
        layer = RSDC2d(4, 6, resample=resample)
        function = torch.compile(layer, backend="aot_eager", fullgraph=True)
        x = X.float()
        torch.manual_seed(1)
        y = function(x)
        torch.manual_seed(1)
        torch.testing.assert_close(y, layer(x))
        layer.eval()
        torch.testing.assert_close(function(x), layer(x))


def test_state_travels():
    source, target = layer_of(4, 6, seed=1), layer_of(4, 6, seed=2)
    assert sorted(source.state_dict()) == ["bias", "taps", "weight"]
    assert not torch.equal(target.taps, source.taps)
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    target.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(target.taps, source.taps)
    assert_same_bits(target(X), source(X))
    for assign in (False, True):
        other = layer_of(4, 6, seed=3)
        other.load_state_dict(source.state_dict(), assign=assign)
        assert_same_bits(other(X), source(X))


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda t: t.fill_(3), r"taps: RSDC2d: taps\[0\] must have no cell twice"),
        (lambda t: t + 20, r"taps: RSDC2d: taps\[0, \d\] must be from 0 to 24"),
        (lambda t: t.double(), "taps: RSDC2d: taps must be int64"),
        (lambda t: t[:, :8], "size mismatch for 0.taps"),
        (lambda t: t[0], "taps: RSDC2d: taps must have shape"),
    ],
)
def test_bad_taps_are_not_loaded(spoil, text):
    model = nn.Sequential(layer_of(4, 6))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = copy.deepcopy(model.state_dict())
    state["0.taps"] = spoil(state["0.taps"])
    with pytest.raises(RuntimeError, match=text):
        model.load_state_dict(state)
    assert torch.equal(model[0].taps, before["0.taps"])


def test_taps_of_another_window_are_not_loaded():
    """Every cell of a 5x5 window is one of a 7x7's too, but elsewhere."""
    file, model = io.BytesIO(), nn.Sequential(layer_of(4, 6, 7))
    torch.save(nn.Sequential(layer_of(4, 6)).state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    with pytest.raises(RuntimeError, match="RSDC2d: taps must be cells of a window of 7; got 5"):
        model.load_state_dict(state)
    model.load_state_dict(dict(state))  # what says nothing of its window is believed


@pytest.mark.parametrize("travel", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_are_whole_and_apart(travel):
    layer = layer_of(4, 6, resample="epoch")
    layer(X)
    twin = travel(layer)
    assert_same_bits(twin(X), layer(X))
    for one in (layer, twin):
        one.train()
    assert torch.equal(twin.taps, layer.taps)  # their generators go on alike
    before = layer.taps.clone()
    twin.resample_taps()
    assert torch.equal(layer.taps, before) and not torch.equal(twin.taps, before)


def test_meta_and_back():
    with torch.device("meta"):
        layer = RSDC2d(4, 6, generator=seeded())
    assert layer.taps.is_meta and layer(torch.empty(2, 4, 8, 8, device="meta")).shape == (2, 6, 8, 8)
    layer = layer.to_empty(device="cpu")
    layer.reset_parameters()
    layer(torch.randn(2, 4, 8, 8))
    moved = layer_of(4, 6).to("meta")
    assert moved.weight.is_meta and moved.taps.is_meta and moved.taps.dtype is torch.int64
    assert layer_of(4, 6).half().taps.dtype is torch.int64
    fresh = RSDC2d(4, 6, device="meta")
    fresh.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(fresh.taps, layer.taps)


def test_moving_average():
    layer = layer_of(4, 6, resample="epoch")
    average = torch.optim.swa_utils.AveragedModel(layer, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    for _ in range(2):
        layer(X)
        layer.train()
        average.update_parameters(layer)
    assert torch.equal(average.module.taps, layer.taps)
    average.eval()(X)


def test_an_ensemble_has_its_own_taps():
    layers = [layer_of(4, 6, seed=i).eval() for i in range(3)]
    state = stack_module_state(layers)
    base = copy.deepcopy(layers[0]).to("meta")
    y = vmap(lambda p, b: functional_call(base, (p, b), (X,)))(*state)
    for i, layer in enumerate(layers):
        torch.testing.assert_close(y[i], layer(X), rtol=1e-11, atol=1e-11)


RANK = """
import torch
import torch.distributed as dist
from lightkernels.nn import RSDC2d

def rank(i):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method="file://{folder}/meeting", rank=i, world_size=2)
    layer = RSDC2d(4, 6, resample="epoch", generator=torch.Generator().manual_seed(i))
    model = torch.nn.parallel.DistributedDataParallel(layer)
    for _ in range(2):
        model.train()
        model(torch.randn(2, 4, 5, 6)).sum().backward()
        both = [torch.empty_like(layer.taps) for _ in range(2)]
        dist.all_gather(both, layer.taps)
        assert torch.equal(*both)
    dist.barrier()
    dist.destroy_process_group()
    import os
    os._exit(0)  # gloo's threads do not always live through a regular exit
"""


@pytest.mark.skipif(sys.platform == "win32", reason="gloo over a file")
def test_processes_have_the_taps_of_the_first(tmp_path):
    fresh.run_ranks(RANK.format(folder=tmp_path), 2)


@pytest.mark.parametrize("padding_mode", MODES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"padding": "same", "dilation": 2},
        {"padding": (0, 2), "groups": 2, "bias": False},
    ],
)
def test_a_convolution_in_the_centre_is_exactly_equal(options, padding_mode):
    conv = nn.Conv2d(4, 6, 3, padding_mode=padding_mode, dtype=torch.float64, **options).eval()
    conv.weight.requires_grad_(False)
    x = torch.randint(-9, 10, (2, 4, 11, 12)).double()
    with torch.no_grad():
        conv.weight.copy_(torch.randint(-9, 10, conv.weight.shape))
        for k in (3, 5, 7):
            layer = RSDC2d.from_conv2d(conv, k, place="center")
            assert_same_bits(layer(x) + 0, conv(x) + 0)
            assert layer(x).shape == conv(x).shape
            drawn = RSDC2d.from_conv2d(conv, k, generator=seeded())
            assert drawn(x).shape == conv(x).shape
            assert torch.equal(drawn.weight, conv.weight.flatten(2)) and drawn.taps.shape == (6, 9)
            for new in (layer, drawn):
                assert not new.training and not new.weight.requires_grad and new.weight.dtype is torch.float64


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda: RSDC2d(4, 6, 3, taps=10), ValueError, "RSDC2d: taps must be from 1 to 9, .*Hint: pass taps=9, or "
         "kernel_size=5, the smallest window of 10 cells"),
        (lambda: RSDC2d(4, 6, taps=0), ValueError, "RSDC2d: taps must be at least 1; got 0"),
        (lambda: RSDC2d(4, 6, 4), ValueError, "RSDC2d: kernel_size must be odd; got 4"),
        (lambda: RSDC2d(4, 6, (3, 5)), ValueError, "RSDC2d: kernel_size must be square"),
        (lambda: RSDC2d(4, 6, groups=3), ValueError, "RSDC2d: groups must divide in_channels, 4; got 3"),
        (lambda: RSDC2d(4, 6, scope="connection"), ValueError, "RSDC2d: scope must be one of 'filter', 'group'"),
        (lambda: RSDC2d(4, 6, resample="step"), ValueError, "RSDC2d: resample must be one of"),
        (lambda: RSDC2d(4, 6, center=True), ValueError, "RSDC2d: center must be one of"),
        (lambda: RSDC2d(4, 6, padding="full"), ValueError, "RSDC2d: padding must be an int"),
        (lambda: RSDC2d(4, 6, padding=-1), ValueError, "RSDC2d: padding must be at least 0; got .-1, -1"),
        (lambda: RSDC2d(4, 6, padding_mode="wrap"), ValueError, "RSDC2d: padding_mode must be one of"),
        (lambda: RSDC2d(4, 6, generator=3), TypeError, "RSDC2d: generator must be a torch.Generator of the CPU"),
        (lambda: RSDC2d(4.0, 6), TypeError, "RSDC2d: in_channels must be an int; got 4.0"),
        (lambda: RSDC2d(4, 6)(None), TypeError, "rsdc2d: x must be a tensor; got None"),
        (lambda: RSDC2d(4, 6).plot_taps(0), ValueError, "RSDC2d.plot_taps: limit must be at least 1; got 0"),
        (lambda: RSDC2d.from_conv2d(nn.Linear(3, 4)), TypeError, "RSDC2d.from_conv2d: conv must be an nn.Conv2d"),
        (lambda: RSDC2d.from_conv2d(nn.LazyConv2d(4, 3)), TypeError, "RSDC2d.from_conv2d: conv must be an nn.Conv2d"),
        (lambda: RSDC2d.from_conv2d(nn.Conv2d(4, 4, 2)), ValueError, "from_conv2d: conv must have an odd square"),
        (lambda: RSDC2d.from_conv2d(nn.Conv2d(4, 4, 7)), ValueError, "kernel_size must be at least the convolution's"),
        (lambda: RSDC2d.from_conv2d(nn.Conv2d(4, 4, 3), place="left"), ValueError, "place must be one of"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_by_name(make, kind, text):
    with pytest.raises(kind, match=text):
        make()


def test_picture():
    pytest.importorskip("matplotlib")
    layer = layer_of(4, 30)
    for limit, shown in ((24, 24), (100, 30)):
        figure = layer.plot_taps(limit)
        images = [image for part in figure.subfigs for axes in part.axes for image in axes.images]
        assert len(images) == shown + 1
        drawn = images[3].get_array().reshape(-1)
        assert [i for i, v in enumerate(drawn) if v] == layer.taps[3].tolist()
        figure.savefig(io.BytesIO(), format="png")


def test_picture_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'needs matplotlib. Hint: pip install "lightkernels\[train\]"'):
        layer_of(4, 6).plot_taps()


def test_repr():
    text = repr(RSDC2d(4, 6, 7, taps=5, scope="layer", bias=False, dilation=2, resample="epoch"))
    assert text == (
        "RSDC2d(4, 6, kernel_size=(7, 7), stride=(1, 1), taps=5, scope='layer', padding='same', dilation=(2, 2), "
        "resample='epoch', bias=False)"
    )

"""The dense block's operator: orders of channels, statistics, dropout, what it keeps, and its errors."""

import itertools
import re

import pytest
import torch
from torch import Tensor

import lightkernels
from checks.target import Target
from lightkernels import mldn_block
from lightkernels._core.pairing import destination
from lightkernels.ops.mldn_block import OP, cases, reference
from lightkernels.ops.mldn_block.op import VALUES, mldn_block_outputs, prepare

DOUBLE = torch.float64
BACKENDS = [b for b in OP.backends if b in ("cpu", "torch", "reference")]


def case(name):
    return Target("lightkernels.ops.mldn_block", "reference").case(name)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("one", [c for c in cases.CASES if "bulk" not in c.tags], ids=lambda c: c.name)
def test_the_reference_is_the_definition(one):
    sample = one.build(3, DOUBLE)
    close(reference.forward(*sample.args, **sample.kwargs), cases.oracle(*sample.args, **sample.kwargs))


def flat(sample):
    """The same block by the author's one flat concatenation, and in append order: [x | layer 0's | layer 1's | ...]."""
    v = sample.kwargs
    t, values = prepare(*sample.args, **v)
    spec = OP.spec_of(t, values)
    x = t.x
    appended, places = t.x, [list(part) for part in torch.arange(spec.c).chunk(spec.paths)]
    for layer in reference.paths_of(spec, t):
        width, fresh, again = spec.widths[layer[0].layer], [], []
        for part in layer:
            for state, into in (
                (x[:, part.path * width : (part.path + 1) * width], fresh),
                (appended[:, places[part.path]], again),
            ):
                a = reference.normalise(spec, state, part.norm1, []).relu()
                b = reference.normalise(spec, reference.pointwise(spec, a, part), part.norm2, []).relu()
                into.append(reference.spatial(spec, b, part))
        pieces = []
        for p, q in enumerate(spec.destination(layer[0].layer)):
            source = spec.destination(layer[0].layer).index(p)
            pieces += [x[:, p * width : (p + 1) * width], fresh[source]]
            places[q] = places[q] + [appended.shape[1] + p * spec.kappa + i for i in range(spec.kappa)]
        x, appended = torch.cat(pieces, 1), torch.cat([appended, *again], 1)
    return x, appended, [i for part in places for i in part]


@pytest.mark.parametrize("name", ["two_paths", "four_paths", "rotated", "one_path"])
def test_every_order_of_channels_is_the_same_block(name):
    sample = case(name).build(1, DOUBLE)
    literal = reference.forward(*sample.args, **sample.kwargs)
    one_cat, appended, places = flat(sample)
    close(one_cat, literal)
    close(appended[:, places], literal)
    for backend in BACKENDS:
        close(mldn_block(*sample.args, **sample.kwargs, backend=backend), literal)


def test_pairs_of_paths_are_independent():
    """With the paper's pairing paths 0 and 1 never see paths 2 and 3; the other pairings mix them all."""
    for pairing, reached in (("xor1", {0, 1}), ("butterfly", {0, 1, 2, 3}), ("rotate", {0, 1, 2, 3})):
        sample = case("four_paths").build(2, DOUBLE)
        values = {**sample.kwargs, "pairing": pairing}
        x, *rest = sample.args
        moved = x.clone()
        moved[:, : x.shape[1] // 4] += 1.5 * torch.randn_like(moved[:, : x.shape[1] // 4])
        change = mldn_block(moved, *rest, **values) - mldn_block(x, *rest, **values)
        parts = change.abs().amax((0, 2, 3)).chunk(4)
        assert {p for p, part in enumerate(parts) if bool((part > 1e-9).any())} == reached, pairing


def test_partners():
    assert destination("xor1", 4, 3) == (1, 0, 3, 2)
    assert [destination("butterfly", 4, i) for i in range(3)] == [(1, 0, 3, 2), (2, 3, 0, 1), (1, 0, 3, 2)]
    assert [destination("rotate", 4, i)[0] for i in range(4)] == [1, 2, 3, 1]
    for pairing, paths, layer in itertools.product(("xor1", "butterfly", "rotate"), (2, 4, 8), range(5)):
        to = destination(pairing, paths, layer)
        assert sorted(to) == list(range(paths)) and all(p != q for p, q in enumerate(to))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["two_paths", "second", "rsdc", "bulk"])
def test_statistics_are_those_of_what_is_normalised(name, backend):
    sample = case(name).build(5, DOUBLE, "nhwc" if name == "bulk" else "nchw").requires_grad()
    tensors = dict(zip(reference.Inputs._fields, sample.args, strict=False))
    if lightkernels.explain("mldn_block", *sample.args, **sample.kwargs).reasons[backend]:
        pytest.skip("not on this backend")
    out = mldn_block_outputs(backend, **tensors, **sample.kwargs)
    due = mldn_block_outputs("reference", **tensors, **sample.kwargs)
    for a, e in zip(out[:-1], due[:-1], strict=True):
        close(a, e)
    # In whatever order a backend keeps it.
    close(out.mid.sort().values, due.mid.sort().values)
    assert not any(t.requires_grad for t in out[1:]) and out.mid.numel() > 0
    if sample.kwargs["version"] == 1:
        paths = sample.kwargs["paths"]
        read = torch.cat([part[:, : out.stats1.shape[1] // paths] for part in out.y.detach().chunk(paths, 1)], 1)
        close(out.stats1, torch.stack([read.mean((0, 2, 3)), read.var((0, 2, 3), correction=0)]))


def test_what_is_kept_for_the_backward():
    """One buffer, statistics, and the 1x1's outputs, unless they are to be computed again; not x, nor a layer's cat."""
    sample = case("bulk").build().requires_grad()
    counts, first = {}, ()
    for recompute in (False, True):
        kept: dict[int, int] = {}

        def keep(t: Tensor, kept=kept) -> Tensor:
            kept[t.untyped_storage().data_ptr()] = t.numel() if t.dim() == 4 or t.numel() > 5000 else 0
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            y = mldn_block(*sample.args, **{**sample.kwargs, "recompute": recompute}, backend="torch")
        counts[recompute] = sum(kept.values())
        grads = torch.autograd.grad(y.square().sum(), sample.tensors())
        if recompute:
            for a, e in zip(grads, first, strict=True):
                torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4 * float(e.abs().max()))
        first = grads
    t, values = prepare(*sample.args, **sample.kwargs)
    spec = OP.spec_of(t, values)
    weights = sum(w.numel() for w in sample.tensors() if w.dim() == 1 and w.numel() > 5000)
    assert counts == {True: y.numel() + weights, False: y.numel() + spec.mid_shape[0] + weights}


def test_the_1x1_is_computed_again_by_default_where_that_takes_no_longer():
    def keeps(shape, layers=4, version=1, **given):
        x = torch.empty(shape, requires_grad=True)
        form = {"num_layers": layers, "paths": 2, "growth": 8, "version": version}
        _, values = prepare(x, x, x, x, x, **form, **given)
        return values[VALUES.index("keep")]

    assert not keeps((32, 16, 32, 32))
    assert keeps((32, 16, 32, 32), recompute=False) and not keeps((8, 16, 8, 8), recompute=True)
    assert keeps((31, 16, 32, 32)) and keeps((32, 16, 32, 32), layers=5) and keeps((32, 16, 32, 32), version=2)
    with torch.no_grad():
        assert not keeps((31, 16, 32, 32))


@pytest.mark.parametrize("name", ["two_paths", "second"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_a_backward_reads_what_any_backend_kept(name, layout):
    """Compiled code asks for the backend when it runs: the context may be another one by then."""
    sample = case(name).build(4, DOUBLE, layout).requires_grad()
    t, values = prepare(*sample.args, **sample.kwargs)
    spec = OP.spec_of(t, values)
    assert spec.layout == layout
    assert spec.keep
    g = case(name).build(5, DOUBLE).args[0].new_empty_strided(spec.y_shape, spec.y_stride).normal_()
    with torch.no_grad():
        kept = {b: OP.backends[b].function("fwd")(spec, t) for b in BACKENDS}
        grads = {(a, b): OP.backends[b].function("bwd")(spec, g, OP.kept(spec, t), kept[a]) for a in kept for b in kept}
    due = grads["reference", "reference"]
    for found in grads.values():
        for one, other in zip(found, due, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_dropout_is_the_seed_s_alone():
    sample = case("rsdc").build(0, DOUBLE)
    values = dict(sample.kwargs)
    one = mldn_block(*sample.args, **values)
    close(mldn_block(*sample.args, **values), one)
    x, *rest = sample.args
    close(mldn_block(x.contiguous(memory_format=torch.channels_last), *rest, **values), one)
    values["seed"] = values["seed"] + 1
    assert not torch.equal(mldn_block(*sample.args, **values), one)
    t, schema = prepare(*sample.args, **{**values, "dropout": 0.25})
    spec = OP.spec_of(t, schema)
    kept = torch.cat([reference.kept(spec, torch.tensor(s), 0, 300) for s in range(40)]).double()
    assert abs(float(kept.mean()) - 0.75) < 0.005
    rows = kept.permute(1, 0, 2, 3).flatten(1)
    correlation = torch.corrcoef(rows) - torch.eye(300)
    assert float(correlation.abs().max()) < 6 / rows.shape[1] ** 0.5


@pytest.mark.skipif("cpu" not in BACKENDS, reason="without the native core")
def test_channels_that_are_none_are_left_out():
    """Of a condensed block: what a group reads or reaches outside of its path."""
    sample = cases.case("picked", (1, 8, 3, 4), 2, 2, 8, groups=2, version=2, running=True).build(4, DOUBLE)
    t = dict(zip(reference.Inputs._fields, sample.args, strict=False))
    index = torch.cat([torch.arange(c // 2) for c in (4, 4, 8, 8) for _ in range(2)])
    halves = {name: t[name][: t[name].numel() // 2].clone() for name in ("weight1", "weight_sfr")}
    call = {**t, **sample.kwargs, **halves, "index": index, "index_sfr": index, "index_groups": 2, "condense_factor": 2}
    wrong = {}
    for name, weight in (("index", "weight1"), ("index_sfr", "weight_sfr")):
        table, zeroed = index.clone(), halves[weight].clone()
        table[3], table[0] = 2**40, -1  # of the first path: the second group's last, the first group's first
        # Rows of the first 1x1 by output, in turn of the two groups; of the reactivation by what is reached.
        rows = zeroed[: 8 * 2].view(4, 2, 2) if name == "index" else zeroed[: 4 * 2].view(4, 2)
        if name == "index":
            rows[:, 0, 0], rows[:, 1, 1] = 0, 0
        else:
            rows[0], rows[3] = 0, 0
        wrong[name], halves[weight] = table, zeroed
    due = mldn_block(**{**call, **halves}, backend="reference")
    close(mldn_block(**{**call, **wrong}, backend="cpu"), due)


def test_bytes_are_the_paper_s_formula():
    sample = cases.case("wide", (2, 16, 8, 8), 5, 2, 8, groups=4, bottleneck=4).build()
    t, values = prepare(*sample.args, **sample.kwargs)
    spec = OP.spec_of(t, values)
    s = 2 * 8 * 8 * 4
    widths = [16 + 8 * i for i in range(5)]
    assert spec.training_bytes() == sum((4 * c + 29 * 8) * s for c in widths)
    assert spec.bytes() == sum((c + 9 * 8) * s for c in widths)


ERRORS = [
    ({"paths": 3}, "mldn_block: paths must be 1 or even; got 3. Hint: paths exchange their outputs in pairs."),
    ({"paths": 8}, "mldn_block: paths must divide the 4 channels of the block's input; got 8."),
    ({"growth": 5}, "mldn_block: paths must divide growth, 5; got 2."),
    ({"groups": 3}, "mldn_block: groups must divide the 2 outputs and 4 inputs of a path's 3x3; got 3."),
    ({"version": 3}, "mldn_block: version must be 1 or 2; got 3."),
    ({"version": 2}, "mldn_block: weight_sfr must have shape [48]; got None."),
    ({"pairing": "xor2"}, "mldn_block: pairing must be one of 'xor1', 'butterfly', 'rotate'; got 'xor2'."),
    ({"num_layers": 2}, "mldn_block: weight1 must have shape [48]; got [96] (float32, cpu)."),
    ({"dropout": 1.0}, "mldn_block: dropout must be at least 0 and below 1; got 1.0."),
    ({"dropout": 0.5}, "mldn_block: seed must have shape []; got None."),
    ({"kernel_size": 4}, "mldn_block: kernel_size must be odd; got 4."),
    ({"running2": torch.ones(2, 24)}, "mldn_block: running2 must be None with version 1"),
    ({"eps": 0.0}, "mldn_block: eps must be positive; got 0.0."),
]


@pytest.mark.parametrize(("change", "text"), ERRORS, ids=lambda v: "-".join(v) if isinstance(v, dict) else "")
def test_values_that_do_not_fit(change, text):
    sample = case("two_paths").build()
    with pytest.raises(ValueError, match=re.escape(text)):
        mldn_block(*sample.args, **{**sample.kwargs, **change})


def test_wrong_types_and_too_few_values():
    sample = case("two_paths").build()
    x, w1, *rest = sample.args
    for args, change, text in (
        ((x.long(), w1, *rest), {}, "x must be float32, float64, bfloat16 or float16"),
        ((x, w1.double(), *rest), {}, "weight1 must have x's dtype float32"),
        ((x, None, *rest), {}, "weight1 must be a tensor"),
        (sample.args, {"paths": 2.0}, "paths must be of type int; got 2.0."),
        (sample.args, {"recompute": 1}, "recompute must be of type bool; got 1."),
    ):
        with pytest.raises(TypeError, match=f"mldn_block: {text}"):
            mldn_block(*args, **{**sample.kwargs, **change})
    with pytest.raises(ValueError, match="x must have more than one value a channel for batch statistics"):
        mldn_block(x[:1, :, :1, :1], w1, *rest, **sample.kwargs)

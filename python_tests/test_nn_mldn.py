"""The multi-path dense block as a module: one operator that does what its modules do, in every mode of theirs."""

import copy
import warnings

import pytest
import torch
from torch import nn

import lightkernels
from lightkernels.nn import LearnedGroupConv2d, MLDNBlock, group_lasso, set_condensation_progress

KINDS = {
    "standard": {},
    "rsdc": {"conv": "rsdc", "rsdc_bias": True},
    "four_paths": {"paths": 4, "in_channels": 32, "growth": 16, "pairing": "butterfly"},
    "factor": {"groups": 2, "condense_factor": 4, "recompute": True},
    "second": {"version": 2},
    "second_rsdc": {
        **{"version": 2, "conv": "rsdc", "rsdc_bias": True, "groups": 2},
        **{"paths": 4, "in_channels": 32, "growth": 16, "pairing": "rotate"},
    },
}


def make(kind="standard", **options):
    torch.manual_seed(3)
    given = {"in_channels": 16, "growth": 8, "num_layers": 3, "paths": 2, **KINDS[kind], **options}
    return MLDNBlock(**given).double()


def image(block, n=3, side=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, block.in_channels, side, side + 1, dtype=torch.float64, generator=generator)


def same_state(one, other):
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, msg=lambda text, n=name: f"{n}: {text}")


def twins(block):
    """The block, and a copy that runs as its modules."""
    other = copy.deepcopy(block)
    other.forward = other.layered
    return block, other


@pytest.mark.parametrize("kind", list(KINDS)[:5])
def test_ten_steps_are_those_of_the_modules(kind):
    """Parameters, gamma and beta included, running buffers and masks, through two stages of pruning, in float64."""
    pair = twins(make(kind))
    assert pair[0].why_layered() is None
    optimisers = [torch.optim.SGD(b.parameters(), lr=0.02, momentum=0.9) for b in pair]
    for step in range(10):
        for block, optimiser in zip(pair, optimisers, strict=True):
            set_condensation_progress(block, step / 20)
            optimiser.zero_grad()
            x = image(block, seed=step)
            y = block(x)
            (y.sin().mean() + 1e-3 * group_lasso(block)).backward()
            optimiser.step()
        for p, q in zip(pair[0].parameters(), pair[1].parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-11)
        same_state(*pair)
    assert {m.reached for m in pair[0].modules() if isinstance(m, LearnedGroupConv2d)} == {2}
    for block in pair:
        block.eval()
    torch.testing.assert_close(pair[0](x), pair[1](x))


def set_norms(block, change):
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            change(module)


MODES = {
    "momentum": lambda n: setattr(n, "momentum", None),
    "frozen": lambda n: n.eval(),
    "no_buffers": lambda n: (setattr(n, "track_running_stats", False), setattr(n, "running_mean", None),
                             setattr(n, "running_var", None), setattr(n, "num_batches_tracked", None)),
    "eps": lambda n: setattr(n, "eps", 1e-2),
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["standard", "second"])
def test_norms_mean_what_they_mean(kind, mode):
    block = make(kind)
    block(image(block, seed=9))
    set_norms(block, MODES[mode])
    pair = twins(block)
    assert block.why_layered() is None
    for step in range(3):
        x = image(block, seed=step).requires_grad_()
        values = []
        for one in pair:
            one.zero_grad()
            y = one(x)
            grads = torch.autograd.grad(y.square().sum(), [x, *one.parameters()])
            values.append((y, *grads))
        torch.testing.assert_close(values[0], values[1], rtol=1e-9, atol=1e-9)
        same_state(*pair)
    block.eval(), pair[1].eval()
    torch.testing.assert_close(pair[0](x), pair[1](x))
    same_state(*pair)


def test_what_the_operator_cannot_do_runs_layer_by_layer_and_says_so():
    block = make()
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(block)).eval()
    x = image(block)
    with pytest.warns(UserWarning, match=r"^MLDNBlock runs layer by layer: a norm is a SyncBatchNorm\.$"):
        y = converted(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        converted(x)  # once is enough
    torch.testing.assert_close(y, block.eval()(x))
    some = make()
    some.layers[0].paths[1].norm.eval()
    assert some.why_layered() == "some norms use batch statistics and others running ones"
    other = make()
    other.layers[1].paths[0].norm.eps = 0.1
    assert other.why_layered() == "the norms differ in eps"
    seen = []
    watched = make()
    watched.layers[2].paths[0].conv.register_forward_hook(lambda *_: seen.append(1))
    watched(x)
    assert watched.why_layered() == "a module within the block has hooks" and seen == [1]


def test_dropout_is_drawn_by_torch_s_generator():
    block = make(dropout=0.3)
    x = image(block)
    torch.manual_seed(1)
    one = block(x)
    torch.manual_seed(1)
    with lightkernels.use_backend("reference"):
        torch.testing.assert_close(block(x), one)
    assert not torch.allclose(block(x), one)
    block.eval()
    assert torch.equal(block(x), block(x))


def test_autocast_leaves_the_norms_alone():
    block = make().float().train()
    x = image(block).float()
    with torch.autocast("cpu", torch.bfloat16):
        y = block(x)
    assert y.dtype is torch.bfloat16
    y.float().sum().backward()
    assert {p.grad.dtype for p in block.parameters()} == {torch.float32}
    torch.testing.assert_close(y.float(), block(x), rtol=0.1, atol=0.25)


@pytest.mark.parametrize("kind", ["standard", "rsdc", "factor", "second", "second_rsdc"])
def test_condensed_blocks_compute_the_same(kind):
    block = make(kind)
    with pytest.raises(ValueError, match="set_condensation_progress"):
        block.condense()
    block(image(block, seed=5))
    set_condensation_progress(block, 1.0)
    block.eval()
    small, x = block.condense(), image(block)
    assert type(small).__name__ == "CondensedMLDNBlock"
    assert sum(t.nbytes for t in small.state_dict().values()) < sum(t.nbytes for t in block.state_dict().values())
    for layout in (torch.contiguous_format, torch.channels_last):
        given = x.contiguous(memory_format=layout)
        torch.testing.assert_close(small(given), block(given), rtol=1e-11, atol=1e-11)
    assert lightkernels.nn.condense(nn.Sequential(block))[0](x).equal(small(x))
    again = block.condense()
    again.load_state_dict(small.state_dict())
    assert torch.equal(again(x), small(x))


def test_a_checkpoint_in_the_middle_of_pruning_goes_on_bit_for_bit():
    def steps(block, optimiser, which):
        for step in which:
            set_condensation_progress(block, step / 8)
            optimiser.zero_grad()
            block(image(block, seed=step)).square().mean().backward()
            optimiser.step()

    whole = make()
    optimiser = torch.optim.SGD(whole.parameters(), lr=0.05)
    steps(whole, optimiser, range(3))
    saved = copy.deepcopy(whole.state_dict())
    steps(whole, optimiser, range(3, 6))
    resumed = make(num_layers=3)
    resumed.load_state_dict(saved)
    steps(resumed, torch.optim.SGD(resumed.parameters(), lr=0.05), range(3, 6))
    assert all(
        torch.equal(a, b) for a, b in zip(resumed.state_dict().values(), whole.state_dict().values(), strict=True)
    )


def test_compiled_and_exported():
    block = make(num_layers=2).float()
    x = image(block).float()
    due, gradient = twins(block)[1](x), None
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(block), backend="aot_eager", fullgraph=True)
    y = compiled(x)
    torch.testing.assert_close(y, due, rtol=1e-4, atol=1e-4)
    y.sum().backward()
    plain = copy.deepcopy(block)
    plain(x).sum().backward()
    gradient = [p.grad for p in plain.parameters()]
    for p, g in zip(compiled.parameters(), gradient, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-3, atol=1e-3)
    same_state_float = zip(compiled._orig_mod.buffers(), plain.buffers(), strict=True)
    assert all(torch.allclose(a.float(), b.float(), atol=1e-5) for a, b in same_state_float)
    plain.eval()
    program = torch.export.export(plain, (x,))
    assert any("mldn_block" in str(n.target) for n in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), plain(x))


def test_a_condensed_block_of_version_2_exports():
    block = make("second", num_layers=2).float().eval()
    set_condensation_progress(block, 1.0)
    small, x = block.condense(), image(block).float()
    program = torch.export.export(small, (x,))
    assert sum("mldn_block" in str(n.target) for n in program.graph.nodes) == 1
    torch.testing.assert_close(program.module()(x), block(x), rtol=1e-4, atol=1e-4)
    names = ("bias3", "weight_sfr", "affine3", "running1", "running2", "running3", "index", "index_sfr")
    given = {name: getattr(small, name) for name in names}
    told = lightkernels.explain(
        "mldn_block", x, small.weight1, small.weight3, small.affine1, small.affine2, **given, **small.values
    )
    assert told.reasons["torch"] is None
    weights = small.weight1.numel() + small.weight3.numel() + small.weight_sfr.numel()
    assert told.flops == 2 * x.shape[0] * x.shape[2] * x.shape[3] * weights


def test_second_derivatives_are_those_of_the_modules():
    pair = twins(make("second", num_layers=2))
    found = []
    for block in pair:
        x = image(block, n=2, side=3).requires_grad_()
        (first,) = torch.autograd.grad(block(x).sin().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), [x, *block.parameters()], allow_unused=True))
    for a, e in zip(*found, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-8, atol=1e-8)


def test_errors():
    for change, text in (
        ({"in_channels": 18}, "condense_factor must divide the channels of a path in every layer, 9 in layer 0; got 4"),
        ({"growth": 12}, "groups must divide what a path adds, growth / paths = 6; got 4"),
        ({"conv": "dilated"}, "conv must be one of 'standard', 'rsdc'; got 'dilated'"),
        ({"paths": 3}, "paths must be 1 or even; got 3"),
        ({"conv": "rsdc", "k_rsdc": 4}, "k_rsdc must be odd and at least 3, as nine cells are drawn; got 4"),
        ({"sfr_zero_init": True}, "sfr_zero_init must be False in version 1; got True"),
    ):
        with pytest.raises(ValueError, match=f"^MLDNBlock: {text}"):
            make(**change)
    for name in ("rsdc_bias", "recompute", "sfr_zero_init"):
        kind = "a bool or None" if name == "recompute" else "a bool"
        with pytest.raises(TypeError, match=f"^MLDNBlock: {name} must be {kind}; got 1"):
            make(**{name: 1})

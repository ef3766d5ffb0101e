"""The selection operator against the dense sum over all operators, and its code against the paper's formulas."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import Function

from lightkernels._core import native
from lightkernels.compress import gate, operators
from lightkernels.compress.operators import SETS, register_operator
from lightkernels.compress.selection import Selection, selections, sync_codes

TEN = ("C_3x3_4", "Sep_3x3", "N_3x3_4", "Sep_5x5", "Dil_3x3", "Dil_res_3x3", "N_3x3_2", "Fire", "skip_connect", "N_3x3")


class Step(Function):
    """The gate itself: a step whose derivative is that of k (tanh(t a) + 1)."""

    @staticmethod
    def forward(ctx, alpha, t, k):
        ctx.save_for_backward(alpha)
        ctx.t, ctx.k = t, k
        return (alpha > 0).to(alpha.dtype)

    @staticmethod
    def backward(ctx, g):
        (alpha,) = ctx.saved_tensors
        return g * ctx.k * ctx.t * (1 - (ctx.t * alpha).tanh() ** 2), None, None


def one_hot(alpha, codes, count, t, k):
    """Equation 5 for every code, summed over the codes that an operator owns."""
    bits = Step.apply(alpha, t, k)
    masks = [torch.zeros((), dtype=alpha.dtype) for _ in range(count)]
    for code, owner in enumerate(codes):
        factor = torch.ones((), dtype=alpha.dtype)
        for j in range(len(alpha)):
            bit = code >> (len(alpha) - 1 - j) & 1
            factor = factor * (bits[j] if bit else 1 - bits[j])
        masks[owner] = masks[owner] + factor
    return torch.stack(masks)


@pytest.mark.parametrize("count", range(1, 33))
def test_codes_are_total_for_every_number_of_operators(count):
    names = [f"op{i}" for i in range(count)]
    for doubled in ("first", "last"):
        codes = gate.assign(names, doubled)
        bits = gate.bits_for(count)
        assert len(codes) == 2**bits and 2 ** max(bits - 1, 0) <= count <= 2**bits
        assert sorted(set(codes)) == list(range(count)) and list(codes) == sorted(codes)
        twice = [i for i in range(count) if codes.count(i) == 2]
        spare = 2**bits - count
        assert twice == (list(range(spare)) if doubled == "first" else list(range(count - spare, count)))
        assert all(codes.index(i) % 2 == 0 for i in twice)
        if spare == 0:
            assert codes == tuple(range(count))


def test_the_code_of_ten():
    assert gate.assign([str(i) for i in range(10)]) == (0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 7, 8, 9)
    layer = Selection(TEN, 8, 8)
    assert layer.prior() == (0.125,) * 6 + (0.0625,) * 4 and layer.alpha.shape == (4,)


def test_who_owns_two_codes_can_be_said():
    assert gate.assign("abcde", ("a", "b", "e")) == (0, 0, 1, 1, 2, 3, 4, 4)
    with pytest.raises(ValueError, match="leave the codes of c neighbours"):
        gate.assign("abcde", ("a", "c", "e"))
    with pytest.raises(ValueError, match="doubled must name 3 of the operators"):
        gate.assign("abcde", ("a", "b"))


@pytest.fixture
def numbered(monkeypatch):
    """Selections among as many operators as asked for, that do nothing."""
    monkeypatch.setattr(operators, "_registered", {})
    for i in range(13):
        register_operator(f"op{i}", lambda ci, co, stride, act: nn.Identity(), random=False)
    return lambda count: Selection([f"op{i}" for i in range(count)], 4, 4, dtype=torch.float64)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 10, 13])
def test_masks_and_their_derivative_for_every_sign_pattern(numbered, count):
    layer = numbered(count)
    for epoch, signs in itertools.product((0, 74, 149), itertools.product((-1.0, 1.0), repeat=len(layer.alpha))):
        layer.set_schedule(epoch, 150)
        with torch.no_grad():
            layer.alpha.copy_(torch.tensor(signs) * torch.rand(len(signs)).add(0.01))
        mask, expected = layer.mask(), one_hot(layer.alpha, layer.codes, count, layer.t, layer.k)
        assert torch.equal(mask, expected) and sorted(mask.tolist()) == [0.0] * (count - 1) + [1.0]
        assert mask[layer.index()] == 1
        if signs:
            values = torch.randn(count, dtype=torch.float64)
            (ours,) = torch.autograd.grad(layer.masked(values), layer.alpha)
            (theirs,) = torch.autograd.grad(expected @ values, layer.alpha)
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_schedule_is_the_papers():
    rows = {0: (0.1, 5.0), 37: (0.311, 1.61), 75: (1.0, 0.5), 100: (2.154, 0.5), 149: (9.698, 0.5)}
    layer = Selection(("N_3x3_2", "N_3x3"), 4, 4)
    for epoch, (t, k) in rows.items():
        layer.set_schedule(epoch, 150)
        assert (layer.t, layer.k) == pytest.approx((t, k), rel=4e-3)
    with pytest.raises(ValueError, match=r"epoch must be from 0 to 150; got 151"):
        layer.set_schedule(151, 150)


def test_slopes_do_not_vanish_in_float32():
    far = gate.slope(torch.tensor([0.0, 9.5, -30.0]), 1.0, 0.5)
    assert far[0] == 0.5 and (far > 0).all()
    torch.testing.assert_close(far[1].double(), 0.5 / torch.tensor(9.5).double().cosh() ** 2, check_dtype=False)


def dense(layer, x, mask):
    """All operators, weighted by the mask."""
    return sum(mask[i] * branch(x) for i, branch in enumerate(layer.branches))


def pairs():
    """SOP8 by cost and a set of ten whose spare codes double; every code is not needed to see every bit change."""
    eight = ("C_3x3_8", "C_3x3_4", "Fire", "N_3x3_4", "Dil_res_5x5_8", "Sep_res_5x5_8", "N_3x3_2", "N_3x3")
    for code in range(8):
        yield eight, 1 + code % 2, code, code != 3
    for code in (0, 2, 5, 8, 12, 14):
        yield TEN, 1, code, code != 8


@pytest.mark.parametrize(("names", "stride", "code", "training"), list(pairs()))
def test_lazy_is_dense(names, stride, code, training):
    torch.manual_seed(code)
    channels = 16
    layer = Selection(names, channels, channels * stride, stride, dtype=torch.float64)
    layer.set_schedule(40, 150)
    bits = len(layer.alpha)
    with torch.no_grad():
        layer.alpha.copy_(torch.tensor([0.3 if code >> (bits - 1 - j) & 1 else -0.2 for j in range(bits)]))
        for name, value in layer.named_parameters():
            if "norm" in name:
                value.add_(0.3 * torch.randn_like(value))
    for branch in layer.branches:
        branch(torch.randn(2, channels, 5, 5, dtype=torch.float64))
    layer.train(training)
    other, untouched = copy.deepcopy(layer), copy.deepcopy(layer)
    x = torch.randn(3, channels, 7, 6, dtype=torch.float64, requires_grad=True)
    z = x.detach().clone().requires_grad_()

    y = layer(x)
    wanted = dense(other, z, one_hot(other.alpha, other.codes, len(names), other.t, other.k))
    torch.testing.assert_close(y, wanted)
    g = torch.randn_like(y)
    # In place, as blocks add their shortcuts.
    y += 1.0
    y.relu_().backward(g)
    (wanted + 1.0).relu().backward(g)

    torch.testing.assert_close(x.grad, z.grad)
    torch.testing.assert_close(layer.alpha.grad, other.alpha.grad, rtol=1e-9, atol=1e-9 * float(g.norm()))
    assert float(other.alpha.grad.abs().max()) > 0
    active = f"branches.{layer.index()}."
    for (name, ours), theirs in zip(layer.named_parameters(), other.parameters(), strict=True):
        if name.startswith(active):
            torch.testing.assert_close(ours.grad, theirs.grad)
        elif name != "alpha":
            assert ours.grad is None and not theirs.grad.any()
    for i, branch in enumerate(layer.branches):
        theirs = other if i == layer.index() else untouched
        for one, two in zip(branch.buffers(), theirs.branches[i].buffers(), strict=True):
            torch.testing.assert_close(one, two)


class Noisy(nn.Module):
    def __init__(self, ci, co, stride):
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(ci, co, 3, stride, 1), nn.BatchNorm2d(co), nn.Dropout(0.4)

    def forward(self, x):
        return self.drop(self.norm(self.conv(x)).relu())


@pytest.fixture
def noisy(monkeypatch):
    monkeypatch.setattr(operators, "_registered", {})
    register_operator("noisy", lambda ci, co, stride, act: Noisy(ci, co, stride))
    return Selection(("noisy", "N_3x3"), 8, 8, dtype=torch.float64)


def test_a_neighbour_draws_no_random_numbers(noisy):
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    noisy.set_index(1)
    state, before = torch.get_rng_state(), copy.deepcopy(noisy.branches[0].state_dict())
    noisy(x).square().sum().backward()
    assert torch.equal(torch.get_rng_state(), state) and noisy.alpha.grad.abs() > 0
    assert all(torch.equal(a, b) for a, b in zip(before.values(), noisy.branches[0].state_dict().values(), strict=True))
    noisy.set_index(0)
    noisy.alpha.grad = None
    torch.manual_seed(3)
    y = noisy(x)
    y.relu_().sum().backward()
    torch.manual_seed(3)
    own = noisy.branches[0](x)
    other = noisy.branches[1](x)
    expected = noisy.slope() * ((other - own) * (own > 0)).sum()
    torch.testing.assert_close(noisy.alpha.grad, expected)


def test_forced_and_frozen_leave_the_gates_alone():
    layer, x = Selection(TEN, 8, 8), torch.randn(2, 8, 5, 5)
    layer.forced = 4
    assert layer.name == "Dil_3x3" and layer.mask().tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0, 0]
    layer(x).sum().backward()
    assert layer.alpha.grad is None and layer.branches[4].pointwise.weight.grad is not None
    layer.forced, layer.frozen = None, True
    layer(x).sum().backward()
    assert layer.alpha.grad is None and not layer.mask().requires_grad


def test_any_operator_can_be_made_the_active_one():
    layer = Selection(TEN, 8, 8)
    with torch.no_grad():
        layer.alpha.copy_(torch.tensor([0.0, -0.4, 0.01, 0.2]))
    assert layer.bits() == (0, 0, 1, 1) and layer.code() == 3 and layer.undecided()
    for index in range(10):
        layer.set_index(index)
        assert layer.index() == index and layer.name == TEN[index]
        assert float(layer.alpha.detach().abs().min()) >= 0.05 and not layer.undecided(0.04)
    layer.set_index(0)
    # Of its two codes, 0 and 1, the nearer one.
    assert layer.bits() == (0, 0, 0, 1)


def test_the_state_is_the_gates_and_the_operators():
    layer = Selection(TEN, 8, 8, generator=torch.Generator().manual_seed(5))
    twin = Selection(TEN, 8, 8, generator=torch.Generator().manual_seed(6))
    assert {key.partition(".")[0] for key in layer.state_dict()} == {"alpha", "branches"}
    twin.load_state_dict(layer.state_dict())
    assert twin.index() == layer.index() and torch.equal(twin.alpha, layer.alpha)
    derived, x = layer.eval().derive(), torch.randn(2, 8, 5, 5)
    assert torch.equal(derived(x), layer(x)) and not selections(derived)
    assert copy.deepcopy(layer).alpha is not layer.alpha


def test_gates_stay_wide():
    layer = Selection(("N_3x3_2", "N_3x3"), 8, 8)
    before = layer.alpha.detach().clone()
    assert torch.equal(layer.bfloat16().alpha, before) and layer.branches[0].conv.weight.dtype == torch.bfloat16
    layer.slope()
    assert layer.double().alpha.dtype == torch.float64 == layer.slope().dtype


def test_tensors_without_memory_reach_no_kernel():
    """Fake ones say that they are on the CPU; a kernel that read them would end the process."""
    for name in ("Fire", "Sep_res_5x5_8"):
        layer = Selection((name, "N_3x3"), 16, 16)
        layer.set_index(0)
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert layer(torch.randn(2, 16, 4, 4)).shape == (2, 16, 4, 4)
        y = layer(torch.randn(0, 16, 4, 4))
        y.sum().backward()
        assert y.shape == (0, 16, 4, 4)


@pytest.mark.parametrize("code", [2, 5])
def test_autocast_reaches_the_neighbours(code):
    torch.manual_seed(0)
    wide = Selection(SETS["SOP8"], 16, 16)
    with torch.no_grad():
        wide.alpha.copy_(torch.tensor([0.1 if code >> (2 - j) & 1 else -0.1 for j in range(3)]))
    mixed, x = copy.deepcopy(wide), torch.randn(4, 16, 8, 8)
    seen = []
    for branch in mixed.branches:
        first = next(m for m in branch.modules() if isinstance(m, nn.BatchNorm2d))
        first.register_forward_hook(lambda _, args, out: seen.append(args[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        y = mixed(x)
    g = torch.randn(y.shape)
    y.backward(g.to(y.dtype))
    wide(x).backward(g)
    assert mixed.alpha.grad.dtype == torch.float32 and set(seen) == {torch.bfloat16}
    assert float((mixed.alpha.grad - wide.alpha.grad).abs().max()) < 0.02 * float(g.norm())


def test_gates_are_read_at_once_and_not_after_they_changed():
    model = nn.Sequential(Selection(("N_3x3_2", "N_3x3"), 8, 8), Selection(TEN, 8, 8))
    sync_codes(model)
    for layer in model:
        kept = layer._read[2]
        assert layer.code() == kept
        with torch.no_grad():
            layer.alpha.neg_()
        assert layer.code() == 2 ** len(layer.alpha) - 1 - kept
    assert list(selections(model)) == ["0", "1"]


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: Selection("SOP8", 8, 8), TypeError, "names must be a sequence of operators' names"),
        (lambda: Selection([], 8, 8), ValueError, "names must name at least one operator"),
        (lambda: Selection(["Fire", "Fire"], 8, 8), ValueError, "names must name no operator twice"),
        (lambda: Selection(["Fire", "N_3x3_3"], 8, 8), ValueError, "fit a layer of 8 to 8 channels"),
        (lambda: Selection(["Fire"], 8, 8).set_index(1), ValueError, "index must be from 0 to 0"),
    ],
)
def test_refusals(call, error, text):
    with pytest.raises(error) as caught:
        call()
    assert text in str(caught.value)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_second_derivatives_are_refused(frozen, training):
    layer, x = Selection(("Sep_3x3", "Sep_5x5"), 8, 8).train(training), torch.randn(2, 8, 5, 5, requires_grad=True)
    layer.frozen = frozen
    with pytest.raises(RuntimeError, match=r"differentiated again; got create_graph=True. Hint: derive\(\) gives"):
        torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    torch.autograd.grad(layer.derive()(x).square().sum(), x, create_graph=True)


def test_neighbours_may_see_a_part_of_the_batch():
    torch.manual_seed(0)
    layer = Selection(TEN, 8, 8, dtype=torch.float64)
    part, x = copy.deepcopy(layer), torch.randn(6, 8, 5, 5, dtype=torch.float64)
    layer.share = 1 / 3
    y = layer(x)
    g = torch.randn_like(y)
    y.backward(g)
    part(x[:2]).backward(g[:2])
    torch.testing.assert_close(layer.alpha.grad, 3 * part.alpha.grad)


def test_without_a_turn_no_neighbour_runs_and_what_they_gave_is_used_again():
    torch.manual_seed(1)
    whole = Selection(SETS["SOP8"], 16, 16, dtype=torch.float64)
    whole.set_index(SETS["SOP8"].index("Sep_res_5x5_8"))
    layer, ran = copy.deepcopy(whole), set()
    for i, branch in enumerate(layer.branches):
        for module in branch.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda *_, i=i: ran.add(i))
    x = torch.randn(2, 16, 5, 5, dtype=torch.float64)
    g = torch.randn_like(x)
    whole(x).backward(g)

    def gates(turn):
        layer.turn = turn
        layer.zero_grad(), ran.clear()
        layer(x).backward(g)
        for one, two in zip(whole.branches.parameters(), layer.branches.parameters(), strict=True):
            assert (one.grad is None) == (two.grad is None)
            assert one.grad is None or torch.equal(one.grad, two.grad)
        return layer.alpha.grad.clone()

    assert not gates(False).any() and ran == {layer.index()}
    torch.testing.assert_close(gates(True), whole.alpha.grad)
    assert len(ran) == 4
    torch.testing.assert_close(gates(False), whole.alpha.grad)
    assert ran == {layer.index()}
    layer.set_index(0), whole.set_index(0), whole.zero_grad()
    whole(x).backward(g)
    assert not gates(False).any(), "what another code gave"


def test_bfloat16_neighbours_are_near():
    torch.manual_seed(2)
    exact = Selection(SETS["SOP8"], 32, 32)
    layer = copy.deepcopy(exact)
    layer.dtype = torch.bfloat16
    x, g = torch.randn(8, 32, 8, 8), torch.randn(8, 32, 8, 8)
    for index in range(8):
        for one in (exact, layer):
            one.set_index(index), one.zero_grad()
            one(x).backward(g)
        assert (layer.alpha.grad - exact.alpha.grad).norm() < 0.02 * exact.alpha.grad.norm()
        neighbours = {exact.names[i] for i in gate.neighbours(exact.codes)[exact.code()]}
        differs = not torch.equal(layer.alpha.grad, exact.alpha.grad)
        assert differs == bool(neighbours & {"N_3x3", "N_3x3_2"}), neighbours


@pytest.mark.parametrize("stride", [1, 2])
def test_float32_is_near_float64(stride):
    """Where kernels of norms, of halves and of small convolutions take over from PyTorch."""
    torch.manual_seed(4)
    layer = Selection(SETS["SOP8"], 16, 16 * stride, stride)
    for name, value in layer.named_parameters():
        if "norm" in name:
            value.data.add_(0.3 * torch.randn_like(value))
    wide = copy.deepcopy(layer).double()
    x = torch.randn(4, 16, 8, 8)
    g = torch.randn(4, 16 * stride, 8 // stride, 8 // stride)
    for index in range(len(layer.names)):
        inputs = x.clone().requires_grad_(), x.double().requires_grad_()
        for one, z in zip((layer, wide), inputs, strict=True):
            one.set_index(index), one.zero_grad()
            one(z).backward(g.to(z.dtype))
        assert (layer.alpha.grad - wide.alpha.grad).norm() < 1e-5 * g.norm() * (wide.alpha.grad.norm() + 1)
        torch.testing.assert_close(inputs[0].grad.double(), inputs[1].grad, rtol=1e-3, atol=1e-4)
        for ours, theirs in zip(layer.branches.parameters(), wide.branches.parameters(), strict=True):
            if theirs.grad is not None:
                torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-3, atol=1e-3)
    for ours, theirs in zip(layer.buffers(), wide.buffers(), strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-4, atol=1e-5)


def test_channels_last_maps_of_the_cpu_are_searched_in_planes():
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        layer = Selection(("N_3x3_4", "Sep_3x3", "N_3x3", "Fire"), 8, 8).to(memory_format=layout)
        x = torch.randn(2, 8, 6, 8).contiguous(memory_format=layout).requires_grad_()
        y = layer(x)
        y.square().sum().backward()
        found.append((y, x.grad, layer.alpha.grad))
        assert y.is_contiguous() or native.load("_C")[0] is None
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)

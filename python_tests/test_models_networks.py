"""The networks as modules: they train, they are deterministic in evaluation, they survive what users do to modules."""

import copy
import pickle

import pytest
import torch

from lightkernels.models import (
    dilated_mobilenetv2,
    mobilenetv2,
    multiception_net,
    pydmobilenet,
)
from lightkernels.models.shake_shake import OffsetShortcut, shake_shake
from lightkernels.nn import MultiDepthwiseConv2d

# Small variants of every family, layer and option.
SMALL = {
    **{f"pyd-{mid}": (lambda mid=mid: pydmobilenet(11, 0.25, mid)) for mid in ("add", "concat", "depthwise", "dense")},
    "pyd-in": lambda: pydmobilenet(11, 0.25, "add", inner="in"),
    **{
        f"resnet20-{conv}": (lambda conv=conv: multiception_net("resnet20", conv))
        for conv in ("standard", "dsconv", "mixconv", "mixconv_dense", "multiception")
    },
    "resnet20-single": lambda: multiception_net("resnet20", last="single"),
    "senet56": lambda: multiception_net("senet56"),
    "shakenet": lambda: multiception_net("shakenet26_2x96d"),
    "stl-mobilenetv2": lambda: multiception_net("mobilenetv2"),
    "mobilenetv2": lambda: mobilenetv2(10),
    "nguyen": lambda: dilated_mobilenetv2(num_classes=10),
    "nguyen-split": lambda: dilated_mobilenetv2(split=True, num_classes=10),
}
HEAVY = {"shakenet"}


@pytest.fixture(autouse=True)
def seeded():
    """These maps are too small to share among threads, and on a busy machine threads wait for one another."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def image(name, batch=2):
    side = 4 if name in HEAVY else 32 if "mobilenetv2" in name or "nguyen" in name else 8
    return torch.randn(batch, 3, side, side)


@pytest.mark.parametrize("name", SMALL)
def test_trains_and_evaluates(name):
    model, x = SMALL[name](), image(name)
    y = model(x)
    assert y.shape == (2, 10)
    y.square().sum().backward()
    missing = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)

    model.eval()
    with torch.no_grad():
        want = model(x)
        assert torch.equal(model(x), want)
        torch.testing.assert_close(model(x[:1]), want[:1], rtol=1e-3, atol=1e-4)
        twin = copy.deepcopy(model)
        assert torch.equal(twin(x), want)
        with torch.no_grad():
            for p in twin.parameters():
                p.zero_()
        assert torch.equal(model(x), want)
        twin.load_state_dict(model.state_dict())
        assert torch.equal(twin(x), want)
    if name not in HEAVY:
        assert torch.equal(pickle.loads(pickle.dumps(model))(x), want)


def test_compiles_in_one_graph():
    model, x = SMALL["pyd-add"](), image("pyd-add")
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    want, found = model(x), compiled(x)
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)
    want.square().sum().backward()
    found.square().sum().backward()
    for p, q in zip(model.parameters(), compiled.parameters(), strict=True):
        if p.requires_grad:
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-2, atol=1e-3)


# What torch's own tracer says of any autograd.Function.
@pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning")
def test_shake_shake_compiles_in_one_graph():
    compiled = torch.compile(shake_shake, backend="aot_eager", fullgraph=True)
    a, b = torch.ones(64, 1, 2, 2, requires_grad=True), torch.zeros(64, 1, 2, 2, requires_grad=True)
    y = compiled(a, b, training=True)
    y.sum().backward()
    torch.testing.assert_close(a.grad + b.grad, torch.ones_like(a))
    assert not torch.allclose(a.grad, y.detach(), atol=0.1)


def test_folding_every_layer_keeps_the_function():
    model = pydmobilenet(11, 0.25, "add").double()
    x = image("pyd").double()
    model(x)
    model.eval()
    want = model(x)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, MultiDepthwiseConv2d):
                setattr(parent, name, child.fold())
    assert not any(isinstance(module, MultiDepthwiseConv2d) for module in model.modules())
    torch.testing.assert_close(model(x), want, rtol=1e-10, atol=1e-10)


def test_parameters_come_in_the_order_of_the_data():
    """Stem, stages, head; in a block the main path, then the shortcut."""
    with torch.device("meta"):
        names = [name for name, _ in pydmobilenet(11, 0.5).named_parameters()]
        second = [name.removeprefix("stages.1.0.") for name in names if name.startswith("stages.1.0.")]
        shake = list(dict(multiception_net("shakenet26_2x96d", "dsconv").stages[0][0].named_parameters()))
    assert [name.split(".")[0] for name in names[:3]] == ["norm", "norm", "stem"]
    assert names[-2:] == ["classifier.weight", "classifier.bias"]
    assert second == [
        *("norm1.weight", "norm1.bias", "reduce.weight", "norm2.weight", "norm2.bias"),
        *(f"tail.depthwise.branches.{m}.weight" for m in range(3)),
        *("tail.norm1.weight", "tail.norm1.bias", "tail.pointwise.weight", "tail.norm2.weight", "tail.norm2.bias"),
        *("shortcut.0.weight", "shortcut.1.weight", "shortcut.1.bias"),
    ]
    heads = list(dict.fromkeys(name.split(".")[0] for name in shake))
    assert heads == ["branch1", "branch2", "shortcut"]


def test_frozen_input_norm():
    model = pydmobilenet(11)
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["norm.weight", "norm.bias"]
    model(3 + image("pyd", 8))
    assert model.norm.running_mean.abs().min() > 0.1


def test_dead_shortcuts_are_dead():
    with torch.device("meta"):
        alive = multiception_net("shakenet26_2x96d")
        dead = multiception_net("shakenet26_2x96d", count_dead=True)
    extra = sum(p.numel() for p in dead.parameters()) - sum(p.numel() for p in alive.parameters())
    assert extra == 584640
    x = torch.empty(2, 3, 8, 8, device="meta")
    dead(x).sum().backward()
    unused = [name for name, p in dead.named_parameters() if p.grad is None]
    assert sum(p.numel() for p in dead.parameters() if p.grad is None) == 584640
    assert all(".shortcut." in name for name in unused)


def test_shake_shake_forward_and_backward_draw_apart():
    a = torch.ones(4000, 1, 1, 1, requires_grad=True)
    b = torch.zeros(4000, 1, 1, 1, requires_grad=True)
    y = shake_shake(a, b, training=True)
    y.sum().backward()
    alpha, beta = y.detach().flatten(), a.grad.flatten()
    torch.testing.assert_close(a.grad + b.grad, torch.ones_like(a))
    for drawn in (alpha, beta):
        assert 0 <= drawn.min() < 0.01
        assert 0.99 < drawn.max() <= 1
        assert abs(drawn.mean() - 0.5) < 0.03
    assert abs(torch.corrcoef(torch.stack([alpha, beta]))[0, 1]) < 0.06


def test_shake_shake_draws_for_an_image():
    y = shake_shake(torch.ones(3, 5, 4, 4), torch.zeros(3, 5, 4, 4), training=True)
    assert torch.equal(y, y[:, :1, :1, :1].expand_as(y))
    assert len(y[:, 0, 0, 0].unique()) == 3


def test_shake_shake_evaluates_to_the_mean():
    a, b = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 3, 4, 4)
    y = shake_shake(a, b, training=False)
    torch.testing.assert_close(y, (a + b) / 2)
    y.sum().backward()
    assert torch.equal(a.grad, torch.full_like(a, 0.5))


def test_offset_shortcut_looks_one_pixel_aside():
    shortcut = OffsetShortcut(2, 4, 2).eval()
    x = torch.randn(1, 2, 5, 6)
    maps = torch.relu(x)
    aside = torch.zeros_like(maps)
    aside[:, :, :-1, :-1] = maps[:, :, 1:, 1:]
    halves = shortcut.conv1(maps[:, :, ::2, ::2]), shortcut.conv2(aside[:, :, ::2, ::2])
    torch.testing.assert_close(shortcut(x), shortcut.norm(torch.cat(halves, 1)))

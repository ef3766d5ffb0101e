"""Batch normalisation of the search by kernels of its own, against PyTorch's in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightkernels.compress.channel_norm import channel_norm, mixed_norm
from lightkernels.compress.operators import build_operator
from lightkernels.compress.operators_layers import Shuffle
from lightkernels.compress.operators_modules import CReLUConvolution, Gradient, norm_product
from lightkernels.compress.operators_passes import Repeats, norm_act, running_as

CASES = [
    ("none", 1, 3, 5, 7),
    ("none", 4, 8, 9, 4),
    ("relu", 2, 6, 16, 16),
    ("crelu", 1, 4, 5, 7),
    ("crelu", 6, 9, 3, 3),
]


def made(channels, h, w, seed=0):
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5), norm.bias.normal_()
    # A mean of many deviations, which must not cost the variance's digits.
    z = torch.randn(6, channels, h, w) * torch.rand(channels, 1, 1).add(0.1) + 20.0 * torch.randn(channels, 1, 1)
    return norm, z


def truth(norm, z, act, groups):
    """By PyTorch alone, in float64."""
    wide = nn.BatchNorm2d(len(norm.weight), momentum=norm.momentum).double()
    wide.load_state_dict(norm.state_dict())
    z = z.double().requires_grad_()
    t = wide(z)
    y = {"none": t, "relu": t.relu(), "crelu": torch.cat((t.relu(), (-t).relu()), 1)}[act]
    return wide, z, y if groups == 1 else F.channel_shuffle(y, groups)


@pytest.mark.parametrize(("act", "groups", "channels", "h", "w"), CASES)
def test_output_statistics_and_gradients(act, groups, channels, h, w):
    norm, z = made(channels, h, w)
    wide, wide_z, expected = truth(norm, z, act, groups)
    z.requires_grad_()
    repeats = Repeats()
    with running_as("active"):
        y = norm_act(norm, z, act, Shuffle(groups) if groups > 1 else nn.Identity(), repeats)
    g = torch.randn(y.shape)
    y.backward(g)
    expected.backward(g.double())
    near = {"rtol": 2e-5, "atol": 2e-4, "check_dtype": False}
    torch.testing.assert_close(y, expected, **near)
    assert torch.equal(repeats[0](), y.detach())
    torch.testing.assert_close(z.grad, wide_z.grad, **near)
    for ours, theirs in zip(norm.parameters(), wide.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, **near)
    for ours, theirs in zip(norm.buffers(), wide.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6, check_dtype=False)


@pytest.mark.parametrize(("act", "groups", "channels", "h", "w"), [case for case in CASES if case[0] == "none"])
def test_a_neighbours_product_is_sums(act, groups, channels, h, w):
    norm, z = made(channels, h, w)
    _, _, y = truth(norm, z, act, groups)
    g = torch.randn(y.shape)
    before = [buffer.clone() for buffer in norm.buffers()]
    with torch.no_grad(), running_as("neighbour"):
        found = norm_product(norm, z, Gradient(g), groups)
    assert found == pytest.approx(float((y * g).detach().sum()), rel=1e-4, abs=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(before, norm.buffers(), strict=True))


def test_a_rectified_neighbours_product_is_sums():
    operator, z = CReLUConvolution(8, 16, 1, 2, True), made(8, 6, 5)[1]
    _, _, y = truth(operator.norm, z, "crelu", operator.mixed)
    g = torch.randn(y.shape)
    with torch.no_grad(), running_as("neighbour"):
        found = operator.probe((z,), Gradient(g))
    assert found == pytest.approx(float((y * g).detach().sum()), rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("name", ["N_3x3_2", "C_3x3_4", "Fire", "Sep_res_5x5_8"])
def test_inference_is_evaluation_and_hides_nothing_from_hooks(name):
    torch.manual_seed(0)
    operator, x = build_operator(name, 16, 16, act=name != "C_3x3_4"), torch.randn(2, 16, 7, 6)
    operator(x)
    expected, seen = operator.eval()(x), []
    with torch.no_grad():
        found = operator(x)
    torch.testing.assert_close(found, expected.detach())
    for module in operator.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        assert torch.equal(operator(x), expected.detach())
    assert seen


def test_threads_change_no_bit():
    norm, z, g = nn.BatchNorm2d(40), torch.randn(8, 40, 17, 16), torch.randn(8, 40, 17, 16)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            y, kept = channel_norm(z).forward(norm)
            gz, found, own = channel_norm(z).backward(g, norm.weight, norm.bias, kept)
            results.append((y, kept, gz, found, torch.tensor([own, channel_norm(z).product(norm, g)])))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    mean = z.double().mean((0, 2, 3))
    torch.testing.assert_close(kept[0], mean, rtol=0, atol=1e-6, check_dtype=False)
    centred = ((z.double() - mean[:, None, None]) * g).sum((0, 2, 3))
    torch.testing.assert_close(found[0], centred * kept[2], rtol=0, atol=1e-3, check_dtype=False)


def test_the_running_statistics_take_their_share_of_a_batch():
    for momentum in (0.1, None):
        norm, z = made(6, 5, 7)
        norm.momentum = momentum
        wide, _, _ = truth(norm, z, "none", 1)
        channel_norm(z).forward(norm)
        assert norm.num_batches_tracked == 0
        channel_norm(z).forward(norm, count=True)
        for ours, theirs in zip(norm.buffers(), wide.buffers(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6, check_dtype=False)


def test_a_part_of_the_channels_has_its_part_of_the_product():
    norm, z = made(6, 5, 7)
    _, _, y = truth(norm, z, "none", 1)
    g = torch.randn(z.shape)
    parts = z[:, :2].contiguous(), z[:, 2:].contiguous()
    found = sum(
        channel_norm(part, norm=norm, planes=6).product(norm, g, at) for at, part in zip((0, 2), parts, strict=True)
    )
    assert found == pytest.approx(float((y * g).detach().sum()), rel=1e-4, abs=1e-3)


def test_other_types_and_layouts_have_no_kernels():
    z = torch.randn(2, 4, 3, 3)
    assert channel_norm(z) is not None
    assert channel_norm(z.double()) is channel_norm(z.contiguous(memory_format=torch.channels_last)) is None
    assert channel_norm(z[:0]) is None


@pytest.mark.parametrize(
    ("inputs", "outputs", "conv_groups", "shuffled", "act", "h", "w"),
    [
        (9, 6, 3, 1, "none", 5, 7),
        (8, 8, 4, 4, "none", 8, 8),
        (16, 8, 4, 2, "relu", 3, 11),
        (32, 16, 4, 4, "relu", 4, 9),
    ],
)
def test_a_small_convolution_and_its_norm_without_its_output(inputs, outputs, conv_groups, shuffled, act, h, w):
    conv = nn.Conv2d(inputs, outputs, 1, groups=conv_groups, bias=False)
    norm, d = made(outputs, h, w)[0], made(inputs, h, w, seed=1)[1]
    # Of maps that are a part of others' channels, as those are that several depthwise kernels give.
    held = torch.randn(6, inputs + 3, h, w)
    part = held[:, 2 : 2 + inputs].copy_(d)
    wide_d, wide_w = d.double().requires_grad_(), conv.weight.detach().double().requires_grad_()
    wide, wide_z, y = truth(norm, F.conv2d(wide_d, wide_w, None, groups=conv_groups).detach(), act, shuffled)
    base, g = torch.randn(y.shape), torch.randn(y.shape)
    y.backward(g.double())
    F.conv2d(wide_d, wide_w, None, groups=conv_groups).backward(wide_z.grad)
    own = sum(float((p.detach() * p.grad).sum()) for p in wide.parameters())
    for kernels in (mixed_norm(conv, norm, d, act, shuffled), mixed_norm(conv, norm, part, act, shuffled)):
        assert kernels is not None
        output, kept = kernels.forward(norm, base)
        torch.testing.assert_close(output, (y + base).detach(), rtol=2e-5, atol=2e-4, check_dtype=False)
        assert torch.equal(kernels.apply(kept, base), output)
        gd, gw, (dw, db), found = kernels.backward(g, norm.weight, norm.bias, kept)
        for ours, theirs in ((gd, wide_d), (gw, wide_w), (dw, wide.weight), (db, wide.bias)):
            assert float((ours - theirs.grad).norm()) < 5e-4 * float(theirs.grad.norm())
        assert found == pytest.approx(own, rel=1e-4, abs=1e-2)
        if act == "none":
            assert kernels.product(norm, g) == pytest.approx(float((y * g).detach().sum()), rel=1e-4, abs=1e-3)


def test_what_is_no_small_convolution_stores_its_output():
    norm, d = nn.BatchNorm2d(64), torch.randn(2, 64, 3, 3)
    assert mixed_norm(nn.Conv2d(64, 64, 1, groups=8, bias=False), norm, d) is not None
    assert mixed_norm(nn.Conv2d(64, 64, 1, bias=False), norm, d) is None
    assert mixed_norm(nn.Conv2d(64, 64, 1, groups=64, bias=False), norm, d) is None
    assert mixed_norm(nn.Conv2d(64, 64, 1, groups=8), norm, d) is None
    assert mixed_norm(nn.Conv2d(64, 64, 1, 2, groups=8, bias=False), norm, d) is None
    assert mixed_norm(nn.Conv2d(64, 64, 1, groups=8, bias=False), norm, d.mT) is None
    last = d.to(memory_format=torch.channels_last)
    assert mixed_norm(nn.Conv2d(64, 64, 1, groups=8, bias=False), norm, last) is None

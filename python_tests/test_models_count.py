"""`models.count` on modules of anybody's: what it counts, and that it leaves them alone."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import lightkernels
from lightkernels.models import Count, count, pydmobilenet
from lightkernels.nn import MultiDepthwiseConv2d


def test_plain_modules():
    assert count(nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2), (4, 9, 9)) == Count(8 * 2 * 9 + 8, 8 * 2 * 9 * 25)
    assert count(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), (3, 2, 2)) == Count(65, 60)
    assert count(nn.ConvTranspose2d(4, 6, 2, stride=2, bias=False), (4, 5, 5)) == Count(96, 96 * 25)
    assert count(nn.Identity(), (3, 2, 2)) == Count(0, 0)


@pytest.mark.parametrize(
    ("options", "taps"),
    [({}, 83), ({"combine": "add"}, 83), ({"combine": "cumulative"}, 83), ({"kernel_sizes": (3, 3)}, 18)],
)
def test_our_layer_counts_its_definition(options, taps):
    layer = MultiDepthwiseConv2d(6, **options)
    assert count(layer, (6, 8, 8)) == Count(6 * taps, 6 * taps * 64)
    assert count(MultiDepthwiseConv2d(6, stride=2, **options), (6, 7, 7)).ops == 6 * taps * 16


def test_sums_and_norms_of_the_pydmobilenet_convention():
    layer = nn.Sequential(MultiDepthwiseConv2d(6, combine="add"), nn.BatchNorm2d(6))
    assert count(layer, (6, 8, 8), "pydmobilenet").ops == 6 * 64 * (83 + 3 + 1)
    single = nn.Sequential(MultiDepthwiseConv2d(6, 3, combine="add"), nn.ReLU())
    assert count(single, (6, 8, 8), "pydmobilenet").ops == 6 * 64 * 9


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 3, 3, 3))
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x):
        x = functional.conv2d(x, self.weight * self.scale, padding=1)
        return lightkernels.multi_dwconv2d(x, [torch.ones(4, 1, 3, 3, device=x.device)])


def test_functional_calls_count():
    assert count(Functional(), (3, 5, 5)) == Count(108, 25 * (108 + 36))


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(4, 4, 1, bias=False)
        self.second = self.first

    def forward(self, x):
        return self.second(self.first(x))


def test_shared_parameters_count_once_and_their_calls_twice():
    assert count(Shared(), (4, 3, 3)) == Count(16, 2 * 16 * 9)


class ReadsValues(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1, bias=False)
        self.ours = MultiDepthwiseConv2d(2, combine="add")
        self.register_buffer("repeats", torch.tensor(3))

    def forward(self, x):
        for _ in range(int(self.repeats)):
            x = self.conv(x)
        return self.ours(x)


def test_a_network_that_reads_values_runs_for_real():
    assert count(ReadsValues(), (2, 3, 3)) == Count(4 + 166, 3 * 4 * 9 + 166 * 9)


class UsesNumpy(nn.Module):
    def forward(self, x):
        return x * float(x.numpy().sum())


def test_a_network_that_leaves_torch_runs_for_real():
    assert count(nn.Sequential(nn.Conv2d(2, 2, 1), UsesNumpy()), (2, 3, 3)).ops == 36


class Counts(nn.Module):
    """Changes its state whenever it runs."""

    def __init__(self):
        super().__init__()
        self.inner = ReadsValues()
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x):
        self.runs += 1
        return self.inner(x)


@pytest.mark.parametrize("make", [lambda: pydmobilenet(11, 0.25), ReadsValues, Counts])
def test_the_model_is_left_alone(make):
    model = make().train()
    next(model.children()).eval()
    model.register_forward_hook(lambda *args: None)
    before = copy.deepcopy(model.state_dict())
    flags = [(module.training, len(module._forward_hooks)) for module in model.modules()]
    grads = [(p.requires_grad, p.grad, id(p)) for p in model.parameters()]
    count(model, (3 if make is not ReadsValues and make is not Counts else 2, 8, 8))
    assert flags == [(module.training, len(module._forward_hooks)) for module in model.modules()]
    assert grads == [(p.requires_grad, p.grad, id(p)) for p in model.parameters()]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_meta_half_and_train_give_the_same_count():
    want = count(pydmobilenet(11, 0.25), (3, 8, 8))
    with torch.device("meta"):
        assert count(pydmobilenet(11, 0.25), (3, 8, 8)) == want
    assert count(pydmobilenet(11, 0.25).bfloat16().eval(), [3, 8, 8]) == want
    assert all(type(value) is int for value in (want.params, want.ops))


def test_the_networks_own_error_comes_through():
    with pytest.raises(RuntimeError, match="expected input"):
        count(nn.Conv2d(3, 8, 1), (4, 8, 8))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            (nn.Identity(), (3, 8, 8), "flops"),
            ValueError,
            "count: convention must be one of 'macs', 'condensenet', 'converted', 'train', 'pydmobilenet'; "
            "got 'flops'.",
        ),
        ((nn.Identity(), (3, 8)), ValueError, "count: input_size must be a tuple (C, H, W); got (3, 8)."),
        ((nn.Identity(), (3, 8, 0)), ValueError, "count: input_size must be at least 1 everywhere; got (3, 8, 0)."),
        ((nn.Identity(), "333"), TypeError, "count: input_size must be a tuple (C, H, W); got '333'."),
        ((torch.relu, (3, 8, 8)), TypeError, "count: model must be a torch.nn.Module; got builtin_function_or_method."),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error) as caught:
        count(*arguments)
    assert str(caught.value) == message

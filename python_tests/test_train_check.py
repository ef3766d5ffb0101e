"""The quickstart's own checks: they record what ran, find a wrong kernel, and compare speed with the same network."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lightkernels import models, use_backend
from lightkernels.ops.multi_dwconv2d import reference
from lightkernels.train import check, speed
from lightkernels.train.digits import shifted

IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1)).contiguous(
    memory_format=torch.channels_last
)


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return models.pydmobilenet(11, 0.25).to(memory_format=torch.channels_last)


def test_records_every_layer_and_its_backend(model: torch.nn.Module) -> None:
    with check.recording(model) as runs:
        with use_backend("torch"):
            model(IMAGES)
        with use_backend("reference"):
            model(IMAGES.contiguous())
    names = [name for name, _ in check.layers(model)]
    assert [run.name for run in runs] == names * 2
    assert [run.backend for run in runs] == ["torch"] * 3 + ["reference"] * 3
    assert runs[0] == check.LayerRun(names[0], (6, 8, 8, 8), (3, 5, 7), "add", "nhwc", "torch")
    model(IMAGES)
    assert len(runs) == 6


def test_right_kernels_are_within_the_bound(model: torch.nn.Module) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert check.compare_outputs(model, IMAGES).holds
    found = check.compare_layers(model, IMAGES)
    assert len(found) == 9
    assert all(agreement.holds and agreement.bound > 0 for agreement in found)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("function", "outputs", "layers"), [("fwd", False, 3), ("bwd_x", True, 3), ("bwd_w", True, 3)])
def test_a_kernel_that_is_slightly_wrong_is_found(
    model: torch.nn.Module, function: str, outputs: bool, layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightkernels.ops.multi_dwconv2d import composite

    right = getattr(composite, function)
    monkeypatch.setattr(composite, function, lambda *args: right(*args) * (1 + 3e-6))
    from lightkernels.ops.multi_dwconv2d.op import OP

    monkeypatch.setattr(OP, "_memo", type(OP._memo)())  # plans hold the functions
    with use_backend("torch"):
        assert check.compare_outputs(model, IMAGES).holds is outputs
        wrong = [agreement.name for agreement in check.compare_layers(model, IMAGES) if not agreement.holds]
    assert len(wrong) == layers
    monkeypatch.undo()


def test_bound_is_that_of_the_design() -> None:
    truth = torch.tensor([3.0, 4.0], dtype=torch.float64)
    found = check.Agreement.of("x", torch.tensor([3.0, 4.5]), torch.tensor([3.25, 4.0]), truth)
    assert found.largest == 0.5
    assert found.error == pytest.approx(0.5 / 2**0.5)
    assert found.reference_error == pytest.approx(0.25 / 2**0.5)
    assert found.bound == pytest.approx(2 * 0.25 / 2**0.5 + 2.0**-23 * (12.5**0.5), rel=1e-12)
    assert found.holds


def test_the_plain_network_is_the_same_function(model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.arange(6)
    steps = speed.training_step(model, IMAGES, labels)
    assert list(steps) == [speed.OURS[0], speed.PLAIN[0], speed.OURS[1], speed.PLAIN[1]]
    expected = torch.autograd.grad(F.cross_entropy(model.train()(IMAGES), labels), _trained(model))
    for name, step in steps.items():
        for ours, wanted in zip(step(), expected, strict=True):  # type: ignore[call-overload]
            torch.testing.assert_close(
                ours, wanted, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
            )
    calls = []
    monkeypatch.setattr(speed, "forward", lambda *args, **kw: calls.append(kw) or reference.forward(*args, **kw))
    for name, step in steps.items():
        calls.clear()
        step()
        assert len(calls) == (3 if name in speed.PLAIN else 0)


def test_times_are_those_of_every_candidate(model: torch.nn.Module) -> None:
    block = model.stages[0][0]
    steps = speed.block_step(block, torch.randn(2, 32, 8, 8), compiled=False)
    assert list(steps) == [speed.OURS[0], speed.PLAIN[0]]
    found = speed.seconds(steps, rounds=1, min_time=0.0)
    assert list(found) == list(steps)
    assert all(value > 0 for value in found.values())


def _trained(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def test_shifts_are_whole_pixels_within_reach() -> None:
    images = torch.rand(40, 3, 6, 7) + 0.1
    moved = shifted(images, 1, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    padded, seen = F.pad(images, (1, 1, 1, 1)), set()
    for before, after in zip(padded, moved, strict=True):
        fits = [
            (dy, dx) for dy in range(3) for dx in range(3) if torch.equal(before[:, dy : dy + 6, dx : dx + 7], after)
        ]
        assert len(fits) == 1
        seen.update(fits)
    assert len(seen) == 9

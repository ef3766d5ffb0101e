"""CondenseNet and CondenseNetV2 of the zoo against the second forward pass, unpruned, half pruned and condensed."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightkernels import models
from lightkernels.nn import condense, set_condensation_progress
from second_pass.mldn import forward
from second_pass.mldn_compare import agree
from second_pass.mldn_names import IGNORED, condensenet
from second_pass.mldn_plan import Net, net_slots
from second_pass.mldn_state import weights_from

SIZES: dict[str, Any] = {"stages": (2, 3), "growth": (4, 8)}
GATES = {"hswish_from_block": 1, "se_from_block": 0, "head_reduction": 4, "hidden": 6}
CASES = [
    ({"groups": 2, "condense_factor": 2}, {"groups": 2, "condense": 2}),
    ({"groups": 4, "condense_factor": 2}, {"groups": 4, "condense": 2}),
    ({"groups": 1, "condense_factor": 4, "dataset": "imagenet"}, {"groups": 1, "condense": 4, "stem_stride": 2}),
    ({"groups": 2, "condense_factor": 4, "version": 2}, {"groups": 2, "condense": 4, "version": 2}),
    (
        {"groups": 4, "condense_factor": 2, "version": 2, **GATES},
        {"groups": 4, "condense": 2, "version": 2, "hswish_from": 1, "excite_from": 0, "head_excite": 4, "hidden": 6},
    ),
]
IDS = ["v1", "v1-groups-4", "v1-imagenet", "v2", "v2-gates"]


def _made(options: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    model = models.condensenet(**SIZES, **options, num_classes=5).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if value.dim() == 1 and value.is_floating_point():
                noise = torch.rand(value.shape, generator=generator, dtype=value.dtype)
                value.copy_(noise + 0.5 if name.endswith(("weight", "running_var")) else noise - 0.5)
    return model


def _images() -> Tensor:
    return torch.randn(3, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(("options", "net"), CASES, ids=IDS)
def test_agrees(options: dict[str, Any], net: dict[str, Any], training: bool, progress: float) -> None:
    model = _made(options)
    set_condensation_progress(model, progress)
    agree(model, Net(**SIZES, **net, classes=5), condensenet, _images(), training=training, ignored=IGNORED)


@pytest.mark.parametrize(("options", "net"), CASES, ids=IDS)
def test_pruning_keeps_the_heaviest_in_each_group(options: dict[str, Any], net: dict[str, Any]) -> None:
    model, plan = _made(options), Net(**SIZES, **net, classes=5)
    slots = net_slots(plan)
    for progress in (0.3, 1.0):
        set_condensation_progress(model, progress)
        weights = weights_from(model.state_dict(), slots, condensenet, IGNORED)
        events = min(plan.condense - 1, int(2 * progress * (plan.condense - 1)))
        for name, slot in slots.items():
            if slot.kind != "mask":
                continue
            weight = weights[name.replace("mask", "squeeze") if name.endswith(".mask") else name[: -len("_mask")]][0]
            masks, wide = weights[name][0], slot.shape[-1]
            for g, mask in enumerate(masks):
                # A learned group is every G-th output; a reactivation's, every G-th input.
                rows = weight[g :: len(masks)] if name.endswith(".mask") else weight[:, g :: len(masks)].T
                heavy = rows.abs().sum(0).argsort(descending=True)[: wide - events * (wide // plan.condense)]
                assert sorted(heavy.tolist()) == mask.nonzero()[:, 0].tolist()


@pytest.mark.parametrize(("options", "net"), CASES, ids=IDS)
def test_condensed_agrees(options: dict[str, Any], net: dict[str, Any]) -> None:
    model, plan = _made(options).eval(), Net(**SIZES, **net, classes=5)
    set_condensation_progress(model, 1.0)
    weights = weights_from(model.state_dict(), net_slots(plan), condensenet, IGNORED)
    expected, _ = forward(weights, _images(), plan, training=False, condensed=True)
    torch.testing.assert_close(condense(model)(_images()), expected, rtol=1e-9, atol=1e-9)

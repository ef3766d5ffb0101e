"""MLDN blocks and networks against the second forward pass: values, gradients, statistics, pruned and condensed."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightkernels import models
from lightkernels.nn import MLDNBlock, set_condensation_progress
from second_pass.mldn import forward
from second_pass.mldn_compare import agree
from second_pass.mldn_names import IGNORED, mldn, mldn_block
from second_pass.mldn_plan import Block, Net, net_slots
from second_pass.mldn_state import weights_from

G2 = {"groups": 2, "condense_factor": 2}
B2: dict[str, Any] = {"groups": 2, "condense": 2}
BLOCKS = {
    "two": ((8, 4, 3, 2), G2, B2),
    "four": ((16, 8, 3, 4), G2, B2),
    "six-rotate": ((12, 12, 3, 6), {**G2, "pairing": "rotate"}, {**B2, "pairing": "rotate"}),
    "butterfly": ((16, 8, 3, 4), {**G2, "pairing": "butterfly"}, {**B2, "pairing": "butterfly"}),
    "rsdc": (
        (8, 8, 2, 2),
        {**G2, "conv": "rsdc", "k_rsdc": 7, "rsdc_bias": True},
        {**B2, "rsdc": 7, "rsdc_bias": True},
    ),
    "groups-4": ((8, 8, 2, 2), {"groups": 4, "condense_factor": 2}, {"groups": 4, "condense": 2}),
    "v2": ((16, 8, 3, 4), {**G2, "version": 2}, {**B2, "version": 2}),
    "v2-rsdc": ((8, 4, 2, 2), {**G2, "version": 2, "conv": "rsdc"}, {**B2, "version": 2, "rsdc": 5}),
}
SIZES: dict[str, Any] = {"stages": (2, 2), "growth": (4, 8), "paths": (2, 4)}
NETS = {
    "v1": (G2, B2),
    "v1-resnet": ({**G2, "stem": "resnet"}, {**B2, "stem": "resnet"}),
    "v1-no-shortcut": (
        {**G2, "stem": "resnet", "stem_shortcut": False},
        {**B2, "stem": "resnet", "stem_shortcut": False},
    ),
    "v1-rsdc": ({**G2, "conv": "rsdc", "rsdc_bias": True}, {**B2, "rsdc": 5, "rsdc_bias": True}),
    "v1-imagenet": ({**G2, "dataset": "imagenet"}, {**B2, "stem_stride": 2}),
    "v2": ({**G2, "version": 2}, {**B2, "version": 2}),
}


def _stirred(model: nn.Module) -> nn.Module:
    """Norms that do something: their weights, biases and running statistics at random."""
    generator = torch.Generator().manual_seed(1)
    model.double()
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if value.dim() == 1 and value.is_floating_point():
                noise = torch.rand(value.shape, generator=generator, dtype=value.dtype)
                value.copy_(noise + 0.5 if name.endswith(("weight", "running_var")) else noise - 0.5)
    return model


def _noise(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("progress", [0.0, 1.0])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("case", BLOCKS)
def test_block_agrees(case: str, training: bool, progress: float) -> None:
    (channels, growth, layers, paths), options, plan = BLOCKS[case]
    torch.manual_seed(0)
    block = _stirred(MLDNBlock(channels, growth, layers, paths, **options))
    assert isinstance(block, MLDNBlock) and block.why_layered() is None
    set_condensation_progress(block, progress)
    x = _noise(3, channels, 6, 5).requires_grad_()
    agree(block, Block(channels, growth, layers, paths, **plan), mldn_block, x, training=training, ignored=IGNORED)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("case", NETS)
def test_network_agrees(case: str, training: bool) -> None:
    options, plan = NETS[case]
    torch.manual_seed(0)
    model = _stirred(models.mldn(**SIZES, **options, dropout=0.0, num_classes=5))
    set_condensation_progress(model, 0.5)
    agree(model, Net(**SIZES, **plan, classes=5), mldn, _noise(3, 3, 12, 12), training=training, ignored=IGNORED)


@pytest.mark.parametrize("case", NETS)
def test_condensed_network_agrees(case: str) -> None:
    options, plan = NETS[case]
    net = Net(**SIZES, **plan, classes=5)
    torch.manual_seed(0)
    model = _stirred(models.mldn(**SIZES, **options, dropout=0.0, num_classes=5)).eval()
    set_condensation_progress(model, 1.0)
    weights = weights_from(model.state_dict(), net_slots(net), mldn, IGNORED)
    expected, _ = forward(weights, _noise(2, 3, 12, 12), net, training=False)
    torch.testing.assert_close(model.condense()(_noise(2, 3, 12, 12)), expected, rtol=1e-9, atol=1e-9)

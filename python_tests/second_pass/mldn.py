"""CondenseNet (Huang et al.) in its first and second version, and MLDN (Park and Chang), which runs them in paths.

Algorithms 1 and 2 word for word: split, a composite function a path, and each path keeps what its partner found.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from .mldn_layers import Run, activate, excite, learned, learned_condensed, reactivate, reactivate_condensed, rsdc
from .mldn_plan import Block, Net


def partners(pairing: str, paths: int, layer: int) -> list[int]:
    """Whose result path p keeps; layers count within their block."""
    if paths == 1:
        return [0]
    if pairing == "rotate":
        # No paper has it. As the documentation defines it: what path p makes goes 1 + l mod (P - 1) paths on.
        return [(p - 1 - layer % (paths - 1)) % paths for p in range(paths)]
    if pairing == "xor1":
        assert paths % 2 == 0, f"paths must be 1 or even, is {paths}"
        return [p ^ 1 for p in range(paths)]
    assert pairing == "butterfly" and paths & (paths - 1) == 0, (pairing, paths)
    return [p ^ (1 << layer % (paths.bit_length() - 1)) for p in range(paths)]


def composite(run: Run, x: Tensor, block: Block, name: str, p: int) -> Tensor:
    """H of one path: (N, c, H, W) to (N, kappa, H, W)."""
    if run.condensed:
        y = learned_condensed(run, x, name, p, block.hswish)
    else:
        y = activate(run.norm(x, f"{name}norm1", p), block.hswish)
        y = learned(y, run.get(f"{name}squeeze", p), run.get(f"{name}mask", p))
    y = activate(run.norm(y, f"{name}norm2", p), block.hswish)
    weight = run.get(f"{name}conv", p)
    bias = run.get(f"{name}conv_bias", p) if block.rsdc_bias else None
    if block.rsdc is None:
        y = F.conv2d(y, weight, bias, padding=1, groups=block.g3)
    else:
        y = rsdc(y, weight, run.get(f"{name}taps", p), bias, block.rsdc, block.g3)
    # All paths of a layer share one gate, and both uses of the result come after it.
    return excite(run, y, f"{name}excite") if block.excite else y


def correction(run: Run, h: Tensor, block: Block, name: str, p: int) -> Tensor:
    """What version 2 adds to a path's input, from the path's own result."""
    y = activate(run.norm(h, f"{name}back_norm", p), block.hswish)
    form = reactivate_condensed if run.condensed else reactivate
    return form(y, run.get(f"{name}back", p), run.get(f"{name}back_mask", p))


def layer_forward(run: Run, x: Tensor, block: Block, layer: int, name: str = "") -> Tensor:
    name = f"{name}layers.{layer}."
    inputs = list(torch.split(x, block.width(layer), 1))
    assert len(inputs) == block.paths
    results = [composite(run, part, block, name, p) for p, part in enumerate(inputs)]
    if block.version == 2:
        inputs = [part + correction(run, results[p], block, name, p) for p, part in enumerate(inputs)]
    found = partners(block.pairing, block.paths, layer)
    return torch.cat([torch.cat((part, results[found[p]]), 1) for p, part in enumerate(inputs)], 1)


def block_forward(run: Run, x: Tensor, block: Block, name: str = "") -> Tensor:
    for layer in range(block.layers):
        x = layer_forward(run, x, block, layer, name)
    return x


def residual_stem(run: Run, x: Tensor, net: Net) -> Tensor:
    first, rest = x[:, : net.stem_share], x[:, net.stem_share :]
    y = first
    for i, pad in enumerate((0, 1, 0), start=1):
        y = F.conv2d(y, run.get(f"residual.conv{i}"), padding=pad)
        y = F.relu(run.norm(y, f"residual.norm{i}"))
    return torch.cat((first + y if net.stem_shortcut else y, rest), 1)


def head(run: Run, x: Tensor, net: Net) -> Tensor:
    # A rectifier also where the last block has h-swish.
    x = F.relu(run.norm(x, "head.norm"))
    x = F.avg_pool2d(x, tuple(x.shape[2:]))
    if net.head_excite:
        x = excite(run, x, "head.excite")
    x = x.flatten(1)
    if net.hidden:
        x = F.linear(x, run.get("head.hidden"), run.get("head.hidden_bias"))
        x = activate(x, True) if net.hidden_act else x
    return F.linear(x, run.get("head.classify"), run.get("head.classify_bias"))


def forward(
    weights: Mapping[str, Tensor], x: Tensor, net: Net, *, training: bool, condensed: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the running statistics as they stand afterwards (none but in training).

    Args:
        weights: by the names of `mldn_plan.net_slots`.
        x: (N, 3, H, W).
        net: sizes and options.
        training: batch statistics instead of running ones.
        condensed: learned groups and reactivations in their condensed form, for evaluation.
    """
    run = Run(weights, training, condensed)
    x = F.conv2d(x, run.get("stem"), stride=net.stem_stride, padding=1)
    if net.stem == "resnet":
        x = residual_stem(run, x, net)
    for b, block in enumerate(net.blocks()):
        x = F.avg_pool2d(x, 2) if b else x
        x = block_forward(run, x, block, f"blocks.{b}.")
    return head(run, x, net), run.moved

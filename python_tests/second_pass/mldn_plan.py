"""What a CondenseNet or an MLDN is made of: its sizes, the tensors it needs by name, and what they add up to."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Block:
    """A dense block. With one path it is CondenseNet's.

    groups are those of the learned 1x1 of a path (`groups3` of its 3x3; the same unless said), condense the factor by
    which pruning thins it; `back_groups` and `back_condense` are those of version 2's reactivation.
    """

    channels: int
    growth: int
    layers: int
    paths: int = 1
    version: int = 1
    bottleneck: int = 4
    groups: int = 4
    groups3: int | None = None
    condense: int = 4
    back_groups: int | None = None
    back_condense: int | None = None
    rsdc: int | None = None
    rsdc_bias: bool = False
    pairing: str = "xor1"
    hswish: bool = False
    excite: bool = False

    @property
    def kappa(self) -> int:
        return self.growth // self.paths

    @property
    def mid(self) -> int:
        return self.bottleneck * self.kappa

    @property
    def g3(self) -> int:
        return self.groups3 or self.groups

    @property
    def gt(self) -> int:
        return self.back_groups or self.groups

    @property
    def ct(self) -> int:
        return self.back_condense or self.condense

    @property
    def out(self) -> int:
        return self.width(self.layers) * self.paths

    def width(self, layer: int) -> int:
        """Channels of one path entering a layer."""
        return self.channels // self.paths + layer * self.kappa


@dataclass(frozen=True)
class Net:
    """A network; `paths=None` is CondenseNet. The head's pool covers the whole map (8x8 at 32, 7x7 at 224 pixels)."""

    stages: tuple[int, ...] = (14, 14, 14)
    growth: tuple[int, ...] = (8, 16, 32)
    paths: tuple[int, ...] | None = None
    version: int = 1
    groups: int = 4
    condense: int = 4
    groups3: int | None = None
    back_groups: int | None = None
    back_condense: int | None = None
    bottleneck: int = 4
    stem: str = "conv"
    stem_shortcut: bool = True
    stem_stride: int = 1
    rsdc: int | None = None
    rsdc_from: int = 1
    rsdc_bias: bool = False
    pairing: str = "xor1"
    hswish_from: int = 99
    excite_from: int = 99
    head_excite: int | None = None
    hidden: int | None = None
    hidden_act: bool = True
    classes: int = 10

    @property
    def stem_channels(self) -> int:
        return 2 * self.growth[0]

    @property
    def stem_share(self) -> int:
        """Channels that the residual stem transforms: the first path's (half, where the first block has two)."""
        return self.stem_channels // (self.paths or (1,))[0]

    def blocks(self) -> list[Block]:
        blocks, channels = [], self.stem_channels
        for b, (layers, growth) in enumerate(zip(self.stages, self.growth, strict=True)):
            sparse = self.rsdc if b >= self.rsdc_from else None
            block = Block(
                channels,
                growth,
                layers,
                self.paths[b] if self.paths else 1,
                self.version,
                self.bottleneck,
                self.groups,
                self.groups3,
                self.condense,
                self.back_groups,
                self.back_condense,
                sparse,
                self.rsdc_bias and sparse is not None,
                self.pairing,
                b >= self.hswish_from,
                b >= self.excite_from,
            )
            blocks.append(block)
            channels = block.out
        return blocks


@dataclass(frozen=True)
class Slot:
    """A tensor: its shape, what it is, by how much pruning thins it, and the block at whose resolution it works."""

    kind: str
    shape: tuple[int, ...]
    thin: int = 1
    level: int | None = None
    groups: int = 1

    @property
    def size(self) -> int:
        return math.prod(self.shape)


Slots = dict[str, Slot]


def norm_slots(name: str, level: int | None, *shape: int, thin: int = 1, groups: int = 1) -> Slots:
    kinds = ("gamma", "beta", "mean", "variance")
    return {f"{name}.{kind}": Slot(kind, shape, thin, level, groups) for kind in kinds}


def block_slots(block: Block, name: str = "", level: int = 0) -> Slots:
    """Tensors of a block. The first dimension is the path, except in what the paths of a layer share."""
    slots: Slots = {}
    p, kappa, mid = block.paths, block.kappa, block.mid
    for layer in range(block.layers):
        at, c = f"{name}layers.{layer}.", block.width(layer)
        slots |= norm_slots(f"{at}norm1", level, p, c, thin=block.condense, groups=block.groups)
        slots[f"{at}squeeze"] = Slot("conv", (p, mid, c), block.condense, level)
        slots[f"{at}mask"] = Slot("mask", (p, block.groups, c), block.condense, level)
        slots |= norm_slots(f"{at}norm2", level, p, mid)
        if block.rsdc is None:
            slots[f"{at}conv"] = Slot("conv", (p, kappa, mid // block.g3, 3, 3), 1, level)
        else:
            slots[f"{at}conv"] = Slot("conv", (p, kappa, mid // block.g3, 9), 1, level)
            slots[f"{at}taps"] = Slot("taps", (p, kappa, 9), block.rsdc, level)
        if block.rsdc_bias:
            slots[f"{at}conv_bias"] = Slot("bias", (p, kappa), 1, level)
        if block.excite:
            slots[f"{at}excite.down"] = Slot("gate", (kappa, kappa), 1)
            slots[f"{at}excite.up"] = Slot("gate", (kappa, kappa), 1)
        if block.version == 2:
            slots |= norm_slots(f"{at}back_norm", level, p, kappa)
            slots[f"{at}back"] = Slot("conv", (p, c, kappa), block.ct, level)
            slots[f"{at}back_mask"] = Slot("mask", (p, block.gt, c), block.ct, level)
    return slots


def net_slots(net: Net) -> Slots:
    """Every tensor of a network, in data-flow order."""
    slots: Slots = {"stem": Slot("conv", (net.stem_channels, 3, 3, 3), 1, 0)}
    if net.stem == "resnet":
        h = net.stem_share
        for i, k in enumerate((1, 3, 1), start=1):
            slots[f"residual.conv{i}"] = Slot("conv", (h, h, k, k), 1, 0)
            slots |= norm_slots(f"residual.norm{i}", 0, h)
    channels = net.stem_channels
    for b, block in enumerate(net.blocks()):
        slots |= block_slots(block, f"blocks.{b}.", b)
        channels = block.out
    slots |= norm_slots("head.norm", len(net.stages) - 1, channels)
    if net.head_excite:
        slots["head.excite.down"] = Slot("gate", (channels // net.head_excite, channels))
        slots["head.excite.up"] = Slot("gate", (channels, channels // net.head_excite))
    if net.hidden:
        slots["head.hidden"] = Slot("linear", (net.hidden, channels))
        slots["head.hidden_bias"] = Slot("bias", (net.hidden,))
        channels = net.hidden
    slots["head.classify"] = Slot("linear", (net.classes, channels))
    slots["head.classify_bias"] = Slot("bias", (net.classes,))
    return slots


def made_up(slots: Slots, *, seed: int = 0, pruned: bool = True) -> dict[str, Tensor]:
    """Random float64 tensors; masks keep a random 1/thin of each row, or all."""
    generator = torch.Generator().manual_seed(seed)

    def one(slot: Slot) -> Tensor:
        if slot.kind == "mask":
            kept = slot.shape[-1] // slot.thin if pruned else slot.shape[-1]
            rank = torch.rand(slot.shape, generator=generator, dtype=torch.float64).argsort(-1).argsort(-1)
            return (rank < kept).double()
        if slot.kind == "taps":
            cells = torch.rand((*slot.shape[:-1], slot.thin**2), generator=generator).argsort(-1)
            return cells[..., : slot.shape[-1]].sort(-1).values
        noise = torch.randn(slot.shape, generator=generator, dtype=torch.float64)
        if slot.kind in ("gamma", "variance"):
            return 1 + 0.2 * noise.clamp(-2, 2)
        if slot.kind in ("beta", "mean", "bias"):
            return 0.2 * noise
        inputs = math.prod(slot.shape[2 if slot.kind == "conv" and len(slot.shape) in (3, 5) else 1 :])
        return noise * math.sqrt(2 * slot.thin / inputs)

    return {name: one(slot) for name, slot in slots.items()}


def counts(net: Net, image: int = 32) -> dict[str, int]:
    """The integers that the conventions give, from nothing but the shapes of the tensors.

    train_params and dense_macs are those of the trainable network; params, ops and macs those of the pruned one as the
    original counts it (an operation per multiply-add, activation and pooled input element); converted_params and
    converted_ops count norms of the gathered channels and a classifier that reads half of its inputs.
    """
    slots = net_slots(net)
    blocks = net.blocks()
    side = [-(-image // net.stem_stride) >> b for b in range(len(blocks))]
    total = dict.fromkeys(("train_params", "dense_macs", "params", "ops", "macs"), 0)
    spared_params = spared_ops = 0
    for slot in slots.values():
        pixels = side[slot.level] ** 2 if slot.level is not None else 1
        if slot.kind in ("conv", "linear", "gate", "gamma", "beta", "bias"):
            total["train_params"] += slot.size
            total["params"] += slot.size // (slot.thin if slot.kind == "conv" else 1)
        if slot.kind in ("conv", "linear", "gate"):
            total["dense_macs"] += slot.size * pixels
            total["macs"] += slot.size // slot.thin * pixels
            total["ops"] += slot.size // slot.thin * pixels
        if slot.kind == "gamma":
            total["ops"] += slot.size * pixels
            spared = slot.size - slot.size * slot.groups // slot.thin
            spared_params += 2 * spared
            spared_ops += spared * pixels
    end = blocks[-1].out
    total["ops"] += sum(block.out * s**2 for block, s in zip(blocks, side, strict=True))
    for block, s in zip(blocks, side, strict=True):
        if block.excite:
            # The pool of a path's maps, the rectified middle, two for each sigmoid.
            total["ops"] += block.layers * block.paths * (block.kappa * (s**2 + 1) + 2 * block.kappa)
    if net.head_excite:
        total["ops"] += end + end // net.head_excite + 2 * end
    if net.hidden and net.hidden_act:
        total["ops"] += net.hidden
    if net.version == 1:
        total["ops"] += net.classes
    half = end // 2 * net.classes if net.version == 1 else 0
    total["converted_params"] = total["params"] - spared_params - half
    total["converted_ops"] = total["ops"] - spared_ops - half
    return total

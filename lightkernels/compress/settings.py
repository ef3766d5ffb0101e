"""The numbers of a search, with the paper's and ours as named presets."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from lightkernels._core.spec import fail_type, require
from lightkernels.nn._arguments import one_of, positive_int

_NUMBERS = (
    *("lam", "lr", "momentum", "weight_decay", "gate_lr", "gate_weight_decay", "gate_gamma", "finetune_lr"),
    *("clip_norm", "share", "undecided"),
)
Objective = Literal["paper", "params", "macs", "latency"]
GateDtype = Literal["same", "auto", "bfloat16"]


def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for products of bfloat16, and PyTorch uses them."""
    return torch.backends.mkldnn.is_available() and bool(torch.cpu._is_avx512_bf16_supported())


@dataclass(frozen=True)
class Settings:
    """Weights: SGD and a cosine. Gates: Adam with coupled L2, its rate times ``gate_gamma`` every ``gate_step`` epochs.

    ``lam`` weighs the objective ``cost``: ``"paper"`` is the mean of log weights and log multiply-adds, summed over the
    layers (Eq. 8); the others the log of one cost. ``form="total"`` weighs the sum over the layers instead of the logs.
    In the ``warmup_epochs`` every step trains one uniformly random path and no gate; before the ``freeze_epochs`` the
    gates are settled for good, and the last epochs train the path that was found. ``clip_norm`` bounds the norm of the
    weights' gradients. In each round of ``gate_every`` steps the idle neighbours of a layer run in one; in the others
    what they gave is used again, with what the active operator gives at no cost. ``gate_dtype="bfloat16"`` runs the
    wider convolutions of neighbours so, of networks of float32 on the CPU; ``"auto"`` does where the processor has
    instructions for it; ``"same"`` nowhere. ``share`` is the part of the batch that idle neighbours see: below 1 a step
    takes less time too, but their norms have the statistics of fewer images.
    """

    epochs: int = 150
    warmup_epochs: int = 0
    freeze_epochs: int = 0
    finetune_epochs: int = 20
    lam: float = 1.5e-3
    cost: Objective = "paper"
    form: Literal["log", "total"] = "log"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 3e-4
    gate_lr: float = 0.01
    gate_weight_decay: float = 1e-3
    gate_step: int = 40
    gate_gamma: float = 0.3
    gate_every: int = 1
    gate_dtype: GateDtype = "same"
    finetune_lr: float = 0.02
    clip_norm: float | None = None
    share: float = 1.0
    undecided: float = 0.05

    def __post_init__(self) -> None:
        for name in ("epochs", "gate_step", "gate_every"):
            positive_int("search", name, getattr(self, name))
        for name in ("warmup_epochs", "freeze_epochs", "finetune_epochs"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                fail_type("search", name, "be an int", value)
            require(value >= 0, "search", name, "be at least 0", value)
        phases = self.warmup_epochs + self.freeze_epochs
        hint = "in the epochs between warm-up and freeze the gates learn"
        require(phases < self.epochs, "search", "epochs", f"exceed warm-up and freeze, {phases}", self.epochs, hint)
        for name in _NUMBERS:
            value = getattr(self, name)
            if name == "clip_norm" and value is None:
                continue
            if not isinstance(value, int | float) or isinstance(value, bool):
                fail_type("search", name, "be a number", value)
            require(math.isfinite(value) and value >= 0, "search", name, "be at least 0", value)
        require(0 < self.share <= 1, "search", "share", "be above 0, and at most 1", self.share)
        clip = self.clip_norm
        require(clip is None or clip > 0, "search", "clip_norm", "be above 0 or None", clip)
        one_of("search", "cost", self.cost, ("paper", "params", "macs", "latency"))
        one_of("search", "form", self.form, ("log", "total"))
        one_of("search", "gate_dtype", self.gate_dtype, ("same", "auto", "bfloat16"))

    @property
    def gate_epochs(self) -> int:
        """The E of the gates' schedule: epochs in which they learn."""
        return self.epochs - self.warmup_epochs - self.freeze_epochs

    def neighbour_dtype(self) -> torch.dtype | None:
        """Of neighbours' wider convolutions on the CPU; None is that of the weights."""
        if self.gate_dtype == "bfloat16" or (self.gate_dtype == "auto" and multiplies_bfloat16()):
            return torch.bfloat16
        return None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


# Section 5 of the paper; it leaves the length and the rate of fine-tuning open.
PRESETS = {
    "paper": Settings(),
    "recommended": Settings(
        epochs=60,
        warmup_epochs=12,
        freeze_epochs=6,
        finetune_epochs=20,
        gate_step=16,
        lr=0.05,
        finetune_lr=0.05,
        # Operators with a residual of their own end in no norm: random paths through many of them diverge without.
        clip_norm=1.0,
    ),
}


def checked(op: str, settings: Settings | None) -> Settings:
    """The settings given, or the recommended ones."""
    if settings is None:
        return preset()
    if not isinstance(settings, Settings):
        fail_type(op, "settings", "be Settings", settings, 'preset("paper") makes them')
    return settings


def preset(name: str = "recommended", **changes: Any) -> Settings:
    """The settings called ``name`` with ``changes``; phases that are not given keep their share of ``epochs``.

    >>> preset("recommended", epochs=30).warmup_epochs
    6

    Raises:
        ValueError: for an unknown name or value; TypeError for an unknown field.
    """
    one_of("preset", "name", name, PRESETS)
    base = PRESETS[name]
    epochs = changes.get("epochs", base.epochs)
    if isinstance(epochs, int) and epochs >= 1:
        for field in ("warmup_epochs", "freeze_epochs", "gate_step"):
            scaled = round(getattr(base, field) * epochs / base.epochs)
            changes.setdefault(field, max(1, scaled) if field == "gate_step" else scaled)
    return replace(base, **changes)

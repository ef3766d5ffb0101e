"""The training loop of search and fine-tuning: callables in, an epoch at a time, mixed precision, several processes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from lightkernels._core.spec import fail_type, require

T = TypeVar("T")
Loss = Callable[[Any, Any], Tensor]
BatchLoss = Callable[[nn.Module, Any], Tensor]
MakeOptimizer = Callable[[Sequence[nn.Parameter]], Optimizer]
MakeSchedule = Callable[[Optimizer, int], LRScheduler]


@dataclass(frozen=True)
class Recipe:
    """How a step is done.

    ``loss_fn(output, target)`` for batches ``(inputs, target)``, or ``batch_loss(model, batch)`` for any others.
    ``optimizer(parameters)`` and ``schedule(optimizer, epochs)`` replace SGD and the cosine; ``amp`` is a dtype of
    autocast, and float16 brings a gradient scaler.
    """

    loss_fn: Loss = F.cross_entropy
    batch_loss: BatchLoss | None = None
    optimizer: MakeOptimizer | None = None
    schedule: MakeSchedule | None = None
    amp: torch.dtype | None = None

    def loss(self, model: nn.Module, batch: Any, device: torch.device) -> Tensor:
        if self.amp is not None:
            with torch.autocast(device.type, dtype=self.amp):
                return self._loss(model, moved(batch, device))
        return self._loss(model, moved(batch, device))

    def _loss(self, model: nn.Module, batch: Any) -> Tensor:
        if self.batch_loss is not None:
            return self.batch_loss(model, batch)
        pair = isinstance(batch, list | tuple) and len(batch) == 2
        hint = "batch_loss=(model, batch) -> loss takes any other batch"
        require(pair, "search", "train_loader", "give batches (inputs, target)", type(batch).__name__, hint)
        return self.loss_fn(model(batch[0]), batch[1])


def moved(batch: Any, device: torch.device) -> Any:
    """A batch, nested sequences and mappings included, on a device."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: moved(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        parts = [moved(value, device) for value in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch


def device_of(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def initialised() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def rank() -> int:
    return torch.distributed.get_rank() if initialised() else 0


def distributed(model: nn.Module, idle: bool) -> nn.Module:
    """DistributedDataParallel around the model in joined processes; ``idle``: some parameters get no gradient."""
    if not initialised():
        return model
    from torch.nn.parallel import DistributedDataParallel

    device = device_of(model)
    return DistributedDataParallel(
        model, device_ids=[device] if device.type == "cuda" else None, find_unused_parameters=idle
    )


def first_says(value: T) -> T:
    """The first process's value in all of them."""
    found = [value]
    if initialised():
        torch.distributed.broadcast_object_list(found)
    return found[0]


def agreed(value: Tensor) -> Tensor:
    """The mean over all processes."""
    if initialised():
        value = value.clone()
        torch.distributed.all_reduce(value)
        value /= torch.distributed.get_world_size()
    return value


class Trainer:
    """Optimiser, schedule and scaler of one phase; ``step`` is one batch.

    ``also``: another optimiser that steps with it, on parameters of its own. ``extra`` is added to the loss.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: Sequence[nn.Parameter],
        recipe: Recipe,
        *,
        epochs: int,
        lr: float,
        momentum: float,
        weight_decay: float,
        clip_norm: float | None = None,
        also: Optimizer | None = None,
    ) -> None:
        if not isinstance(recipe, Recipe):
            fail_type("search", "recipe", "be a Recipe", recipe)
        self.recipe, self.also, self.clip_norm, self.device = recipe, also, clip_norm, device_of(model)
        self.weights = [p for p in weights if p.requires_grad]
        if recipe.optimizer is None:
            self.optimizer: Optimizer = torch.optim.SGD(self.weights, lr, momentum, weight_decay=weight_decay)
        else:
            self.optimizer = recipe.optimizer(self.weights)
        if recipe.schedule is None:
            self.schedule: LRScheduler = CosineAnnealingLR(self.optimizer, max(1, epochs))
        else:
            self.schedule = recipe.schedule(self.optimizer, epochs)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.amp is torch.float16)
        self.call = distributed(model, idle=also is not None)

    def step(self, batch: Any, extra: Callable[[], Tensor] | None = None) -> Tensor:
        """One step of all optimisers; the loss without ``extra``."""
        loss = self.recipe.loss(self.call, batch, self.device)
        whole = loss if extra is None else loss + extra()
        both = [self.optimizer] if self.also is None else [self.optimizer, self.also]
        for optimizer in both:
            optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(whole).backward()
        active = [o for o in both if any(p.grad is not None for group in o.param_groups for p in group["params"])]
        for optimizer in active:
            self.scaler.unscale_(optimizer)
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.weights, self.clip_norm)
        for optimizer in active:
            self.scaler.step(optimizer)
        self.scaler.update()
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": {k: v for k, v in self.schedule.state_dict().items() if not callable(v)},
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])


def batches(loader: Iterable[Any], epoch: int) -> Iterator[Any]:
    """One epoch; a sampler that shuffles by epoch, such as DistributedSampler, is told which."""
    for owner in (getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None), loader):
        tell = getattr(owner, "set_epoch", None)
        if callable(tell) and len(inspect.signature(tell).parameters) == 1:
            tell(epoch)
    empty = True
    for batch in loader:
        empty = False
        yield batch
    hint = "an iterator can be read once only; give a DataLoader or a list" if iter(loader) is loader else None
    require(not empty, "search", "train_loader", "give at least one batch in every epoch", "none", hint)


def once(loader: object) -> bool:
    """Whether it is an iterator of Python's own, which can be read once only; others may begin again."""
    return isinstance(loader, Iterator) and type(loader).__module__ in ("builtins", "itertools")


def length(loader: Iterable[Any]) -> int | None:
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError:
        return None


@contextmanager
def training(model: nn.Module) -> Iterator[None]:
    """Training mode; every module's own mode comes back."""
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def accuracy(model: nn.Module, loader: Iterable[Any]) -> float:
    """Share of a loader's ``(inputs, labels)`` that the model names right, in evaluation mode."""
    device, right, seen = device_of(model), 0, 0
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            for images, labels in loader:
                right += int((model(images.to(device)).argmax(1) == labels.to(device)).sum())
                seen += len(labels)
    finally:
        for module, mode in modes:
            module.training = mode
    require(seen > 0, "accuracy", "loader", "give at least one batch", "none")
    return right / seen

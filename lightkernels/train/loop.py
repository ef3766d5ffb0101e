"""Stochastic gradient descent with one learning-rate cycle: as much of a trainer as the quickstart needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightkernels.train.digits import Split, shifted

Told = Callable[["History"], None]


@dataclass(frozen=True)
class Recipe:
    """Nesterov momentum, cosine one-cycle learning rate, labels smoothed, images shifted by up to ``reach`` pixels."""

    epochs: int = 10
    batch: int = 64
    peak_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    smoothing: float = 0.05
    reach: int = 2


@dataclass
class History:
    """What happened so far: a loss for each step, a test accuracy for each epoch; ``total`` steps in all."""

    total: int
    epochs: int
    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)

    def mean_losses(self) -> list[float]:
        """The mean training loss of each whole epoch."""
        steps = self.total // max(1, self.epochs)
        return [sum(self.losses[i : i + steps]) / steps for i in range(0, len(self.losses) - steps + 1, steps)]


def predict(model: nn.Module, images: Tensor, batch: int = 512) -> Tensor:
    """Logits ``[N, classes]`` in evaluation mode, without gradients; the model's mode is left as it was."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return torch.cat([model(part) for part in images.split(batch)])
    finally:
        model.train(training)


def accuracy(model: nn.Module, data: Split) -> float:
    """Share of ``data`` that the model names right."""
    right = predict(model, data.images).argmax(1) == data.labels
    return float(right.float().mean())


def fit(model: nn.Module, train: Split, test: Split, recipe: Recipe, seed: int, tell: Told) -> History:
    """Trains ``model`` in place and calls ``tell`` after every step and every epoch.

    The order of the images and their shifts follow from ``seed`` alone; the weights are the caller's.
    """
    draw = torch.Generator().manual_seed(seed)
    steps = -(-len(train) // recipe.batch)
    history = History(total=steps * recipe.epochs, epochs=recipe.epochs)
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad],
        lr=recipe.peak_rate,
        momentum=recipe.momentum,
        nesterov=True,
        weight_decay=recipe.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.peak_rate, total_steps=max(2, history.total))
    for _ in range(recipe.epochs):
        model.train()
        for chosen in torch.randperm(len(train), generator=draw).split(recipe.batch):
            images = shifted(train.images[chosen], recipe.reach, draw)
            loss = F.cross_entropy(model(images), train.labels[chosen], label_smoothing=recipe.smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            history.losses.append(float(loss.detach()))
            tell(history)
        history.accuracies.append(accuracy(model, test))
        tell(history)
    return history

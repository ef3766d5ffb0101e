"""Search and fine-tuning over a loader; each can be stopped at any time and goes on from its last whole epoch."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightkernels._core.spec import require
from lightkernels.compress import checkpoint as files
from lightkernels.compress.loop import Recipe, Trainer, agreed, batches, device_of, length, rank, training
from lightkernels.compress.plan import Plan, Target
from lightkernels.compress.progress import Progress, Reporter, reporting
from lightkernels.compress.searcher import Searcher
from lightkernels.compress.settings import Settings, checked
from lightkernels.train.files import atomic_write, finite, writable

Evaluate = Callable[[nn.Module], float]
Record = dict[str, Any]


@dataclass
class Phase:
    """What a run of epochs needs beside model and loader."""

    title: str
    epochs: int
    trainer: Trainer
    searcher: Searcher | None = None
    evaluate: Evaluate | None = None
    checkpoint: Path | None = None
    log: Path | None = None
    records: list[Record] = field(default_factory=list)

    def run(self, model: nn.Module, loader: Iterable[Any], progress: Progress, resume: bool) -> list[Record]:
        for path in (self.checkpoint, self.log):
            if path is not None and rank() == 0:
                writable(path.parent)
        start = self.restore(model, loader) if resume else 0
        with training(model), reporting(progress if rank() == 0 else False, self.title, self.epochs) as reporter:
            for epoch in range(start, self.epochs):
                self.records.append(self.epoch(model, loader, epoch, reporter))
                self.store(model, loader, epoch + 1)
                reporter.epoch(self.records[-1])
        return self.records

    def epoch(self, model: nn.Module, loader: Iterable[Any], epoch: int, reporter: Reporter) -> Record:
        searcher, total, losses, begun = self.searcher, length(loader), [], time.perf_counter()
        model.train()
        if searcher is not None:
            searcher.start_epoch(epoch)
        for done, batch in enumerate(batches(loader, epoch)):
            if searcher is None:
                losses.append(self.trainer.step(batch))
            else:
                searcher.start_step()
                loss = self.trainer.step(batch, searcher.penalty)
                searcher.end_step(loss)
            reporter.step(epoch, done + 1, total)
        self.trainer.schedule.step()
        if searcher is not None:
            record = searcher.end_epoch().as_dict()
            record["loss"] = float(agreed(torch.tensor(record["loss"], device=self.trainer.device)))
        else:
            mean = torch.stack([loss.float() for loss in losses]).mean()
            record = {"epoch": epoch, "phase": self.title, "loss": float(agreed(mean))}
            record["seconds"] = time.perf_counter() - begun
        hint = "a lower lr, or clip_norm; the checkpoint is that of the epoch before"
        require(
            math.isfinite(record["loss"]), "search", "the loss", "be finite", f"{record['loss']} in epoch {epoch}", hint
        )
        record["accuracy"] = None if self.evaluate is None else float(self.evaluate(model))
        return record

    def store(self, model: nn.Module, loader: Iterable[Any], done: int) -> None:
        if self.checkpoint is not None:
            content = {"title": self.title, "epochs": self.epochs, "done": done, "records": self.records,
                       "model": model.state_dict(), "trainer": self.trainer.state_dict()}  # fmt: skip
            content["searcher"] = None if self.searcher is None else self.searcher.state_dict()
            files.save(self.checkpoint, content, loader)
        if self.log is not None and rank() == 0:
            with atomic_write(self.log) as temporary:
                temporary.write_text(
                    "".join(json.dumps(finite(record)) + "\n" for record in self.records), encoding="utf-8"
                )

    def restore(self, model: nn.Module, loader: Iterable[Any]) -> int:
        require(self.checkpoint is not None, "search", "resume", "come with a checkpoint's path", True)
        assert self.checkpoint is not None
        if not self.checkpoint.exists():
            return 0
        content = files.load(self.checkpoint, device_of(model))
        for name, asked in (("title", self.title), ("epochs", self.epochs)):
            require(content[name] == asked, "search", name, f"be {content[name]}, as in {self.checkpoint}", asked)
        if self.searcher is not None:
            self.searcher.load_state_dict(content["searcher"])
        try:
            model.load_state_dict(content["model"])
        except RuntimeError as error:
            raise files.CheckpointError(
                f"search: {self.checkpoint} must be of this network; got {str(error)[:400]}"
            ) from error
        self.trainer.load_state_dict(content["trainer"])
        self.records = list(content["records"])
        files.set_random_state(content["random"][rank()], loader)
        return int(content["done"])


def search(
    model: nn.Module,
    plan: Plan,
    train_loader: Iterable[Any],
    settings: Settings | None = None,
    *,
    target: Target | None = None,
    recipe: Recipe | None = None,
    evaluate: Evaluate | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    log: str | Path | None = None,
    progress: Progress = True,
    seed: int = 0,
) -> list[Record]:
    """Trains a supernet's weights and gates in place, one joint step a batch; the records of its epochs.

    Args:
        model, plan: what :func:`reconstruct` returned; the model on the device where it shall be trained.
        train_loader: batches ``(inputs, targets)``, or whatever ``recipe.batch_loss`` takes; read once an epoch.
        settings: :func:`preset`, "recommended" if left out.
        target: an upper bound from ``plan.target(...)`` that steers ``lam``, and that the settled gates meet.
        recipe: loss, optimiser, schedule, mixed precision, as callables.
        evaluate: of the supernet after each epoch, for the log.
        checkpoint: written after each epoch, whole or not at all; ``resume=True`` goes on from it bit for bit, or
            begins if it is not there.
        log: a file of JSON lines, a record an epoch.
        progress: True, False, or a function of each record.

    In processes joined by ``torch.distributed`` the model is wrapped for the time of the search; give every process its
    part of the batches (``DistributedSampler``). The first writes the files.

    Source: section 3 of the paper; Eq. 3 to 8.
    """
    settings = checked("search", settings)
    searcher = Searcher(model, plan, settings, target=target, seed=seed)
    trainer = Trainer(
        model,
        searcher.weights,
        recipe or Recipe(),
        epochs=settings.epochs,
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        clip_norm=settings.clip_norm,
        also=searcher.gate_optimizer,
    )
    phase = Phase("search", settings.epochs, trainer, searcher, evaluate, _path(checkpoint), _path(log))
    return phase.run(model, train_loader, progress, resume)


def finetune(
    model: nn.Module,
    train_loader: Iterable[Any],
    *,
    epochs: int = 20,
    lr: float = 0.02,
    momentum: float = 0.9,
    weight_decay: float = 3e-4,
    clip_norm: float | None = None,
    recipe: Recipe | None = None,
    evaluate: Evaluate | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    log: str | Path | None = None,
    progress: Progress = True,
    title: str = "fine-tune",
) -> list[Record]:
    """Trains any network in place, as :func:`derive` made it; the records of its epochs. Arguments as of ``search``."""
    trainer = Trainer(
        model,
        list(model.parameters()),
        recipe or Recipe(),
        epochs=epochs,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
    )
    phase = Phase(title, epochs, trainer, None, evaluate, _path(checkpoint), _path(log))
    return phase.run(model, train_loader, progress, resume)


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)

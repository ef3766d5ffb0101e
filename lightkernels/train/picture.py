"""The quickstart's picture: how it learned, what it reads, how fast a step is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightkernels.train.digits import Split
from lightkernels.train.files import atomic_write
from lightkernels.train.loop import History

_OURS, _THEIRS, _WRONG, _QUIET = "#2a6fb0", "#b8bec6", "#c8452f", "#5c6670"


def draw(
    path: str | Path,
    title: str,
    history: History,
    test: Split,
    logits: Tensor,
    tables: Mapping[str, Mapping[str, float]],
) -> None:
    """Saves a PNG: learning curve, confusion matrix, sample digits with the answers, seconds of each candidate.

    Args:
        logits: ``[len(test), 10]``.
        tables: a title and the seconds of each candidate; names that start with "lightkernels" are ours.
    """
    figure = Figure(figsize=(12.5, 8.2 if tables else 4.4), dpi=110, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    figure.suptitle(title, fontsize=14, fontweight="bold", x=0.012, ha="left")
    parts = figure.subfigures(2 if tables else 1, 1, height_ratios=(1.1, 1) if tables else None, squeeze=False)
    top = parts[0, 0]
    curve, matrix, digits = top.subfigures(1, 3, width_ratios=(1.35, 1, 1.1))
    answers = logits.argmax(1).cpu()
    _learning(curve.subplots(), history)
    _confusion(matrix.subplots(), answers, test.labels.cpu())
    _samples(digits, test, answers)
    if tables:
        below = parts[1, 0].subplots(1, len(tables), squeeze=False)[0]
        for axes, (name, seconds) in zip(below, tables.items(), strict=True):
            _bars(axes, name, seconds)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")


def _tidy(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _learning(axes: Any, history: History) -> None:
    epochs = range(1, len(history.accuracies) + 1)
    _tidy(axes, "Learning")
    axes.plot(epochs, history.mean_losses(), color=_QUIET, linewidth=1.6)
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel("training loss", color=_QUIET)
    axes.set_ylim(bottom=0)
    right = axes.twinx()
    right.spines["top"].set_visible(False)
    right.plot(epochs, [100 * a for a in history.accuracies], color=_OURS, linewidth=2.2, marker="o", markersize=4)
    right.axhline(97, color=_OURS, linewidth=0.8, linestyle=":")
    right.set_ylabel("test accuracy in %", color=_OURS)
    right.set_ylim(0, 103)


def _confusion(axes: Any, answers: Tensor, labels: Tensor) -> None:
    counts = torch.bincount(labels * 10 + answers, minlength=100).reshape(10, 10)
    wrong = int(counts.sum() - counts.diagonal().sum())
    _tidy(axes, f"Test images: {len(labels) - wrong} right, {wrong} wrong")
    axes.imshow(counts.sqrt().numpy(), cmap="Blues")
    for i in range(10):
        for j in range(10):
            if counts[i, j]:
                colour = "white" if i == j else _WRONG
                axes.text(j, i, int(counts[i, j]), ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(10))
    axes.set_yticks(range(10))
    axes.tick_params(length=0)
    axes.set_xlabel("answer")
    axes.set_ylabel("digit")


def _samples(figure: Any, test: Split, answers: Tensor) -> None:
    """Wrong answers first, then right ones."""
    labels = test.labels.cpu()
    order = torch.argsort((answers == labels).int(), stable=True)[:20].tolist()
    figure.suptitle("Samples: wrong ones first", fontsize=11, x=0.04, ha="left")
    for axes, i in zip(figure.subplots(4, 5).flat, order, strict=True):
        axes.imshow(test.images[i, 0].cpu().numpy(), cmap="gray_r")
        axes.set_xticks([])
        axes.set_yticks([])
        right = bool(answers[i] == labels[i])
        text = f"{int(answers[i])}" if right else f"{int(answers[i])}, is {int(labels[i])}"
        axes.set_title(text, fontsize=8, color="black" if right else _WRONG, pad=2)
        for spine in axes.spines.values():
            spine.set_color(_QUIET if right else _WRONG)


def _bars(axes: Any, title: str, seconds: Mapping[str, float]) -> None:
    names = list(seconds)
    best = min((s for name, s in seconds.items() if not name.startswith("lightkernels")), default=None)
    _tidy(axes, title)
    colours = [_OURS if name.startswith("lightkernels") else _THEIRS for name in names]
    bars = axes.barh(names, [1e3 * seconds[name] for name in names], color=colours)
    labels = []
    for name in names:
        factor = "" if best is None or not name.startswith("lightkernels") else f"  ({best / seconds[name]:.2f}x)"
        labels.append(f"{1e3 * seconds[name]:.3g} ms{factor}")
    axes.bar_label(bars, labels, padding=4, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlabel("ms a step (times as fast as the best of PyTorch)")
    axes.margins(x=0.28)
    axes.tick_params(axis="y", length=0)

"""Checkpoints: a zoo network's name and options, its state dict and what was measured; plain values and tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightkernels import models
from lightkernels._core.spec import message
from lightkernels._version import __version__
from lightkernels.train.files import atomic_write

FORMAT = "lightkernels checkpoint"
VERSION = 1
_FIELDS = {"model": str, "num_classes": int, "options": dict, "data": str, "results": dict, "state": dict}


class CheckpointError(ValueError):
    """The file is no checkpoint of ours, of a version that this release cannot read, or damaged."""


@dataclass
class Checkpoint:
    """What is stored. ``model`` is a name of ``models.list_models()``, ``data`` the data set it was trained on."""

    model: str
    num_classes: int
    state: dict[str, torch.Tensor]
    data: str
    options: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    written_by: str = __version__

    def build(self) -> nn.Module:
        """The network with its weights, in evaluation mode.

        Raises:
            CheckpointError: if the weights do not fit the network of that name.
        """
        try:
            network = models.create_model(self.model, num_classes=self.num_classes, **self.options)
            network.load_state_dict(self.state)
        except (RuntimeError, ValueError, TypeError) as error:
            raise CheckpointError(f"checkpoint: its weights do not fit {self.model!r}: {error}") from error
        return network.eval()


def save(path: str | Path, checkpoint: Checkpoint) -> None:
    """Writes the checkpoint, whole or not at all; tensors are stored on the CPU."""
    content = {name: getattr(checkpoint, name) for name in _FIELDS}
    content["state"] = {name: tensor.detach().cpu() for name, tensor in checkpoint.state.items()}
    with atomic_write(path) as temporary:
        torch.save({"format": FORMAT, "version": VERSION, "written_by": __version__, **content}, temporary)


def load(path: str | Path) -> Checkpoint:
    """Reads a checkpoint without running code from it (``weights_only=True``).

    Raises:
        FileNotFoundError: without such a file.
        CheckpointError: for a file that is not a checkpoint of this format and version.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch's reader raises of everything, IndexError and KeyError too
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(message("checkpoint", str(path), "be a file that quickstart wrote", reason)) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(message("checkpoint", str(path), "be a file that quickstart wrote", "another file"))
    if content.get("version") != VERSION:
        writer = content.get("written_by", "unknown")
        raise CheckpointError(
            f"checkpoint: {path} must have format version {VERSION}; got version {content.get('version')}, written by "
            f"lightkernels {writer}. Hint: train again with this release ({__version__}), or install that one"
        )
    wrong = [name for name, kind in _FIELDS.items() if not isinstance(content.get(name), kind)]
    if wrong:
        raise CheckpointError(message("checkpoint", str(path), f"hold {', '.join(wrong)}", "a damaged file"))
    return Checkpoint(**{name: content[name] for name in _FIELDS}, written_by=str(content.get("written_by")))

"""Checkpoints of a search or a training that goes on bit for bit: model, optimisers, schedules, random states, log."""

from __future__ import annotations

import pickle
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lightkernels._version import __version__
from lightkernels.compress.loop import initialised, rank
from lightkernels.train.files import atomic_write

FORMAT = "lightkernels compress checkpoint"
VERSION = 1


class CheckpointError(ValueError):
    """The file is no checkpoint of a compression, of a version that this release cannot read, or damaged."""


def random_state(loader: Any) -> dict[str, Any]:
    """Of torch, Python, NumPy where it is loaded, and the loader's own generators."""
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    if "numpy" in sys.modules:
        kind, keys, *rest = sys.modules["numpy"].random.get_state()
        state["numpy"] = [
            str(kind),
            [int(key) for key in keys],
            *(float(v) if i == 2 else int(v) for i, v in enumerate(rest)),
        ]
    state["loader"] = [g.get_state() for g in _generators(loader)]
    return state


def set_random_state(state: Mapping[str, Any], loader: Any) -> None:
    torch.set_rng_state(state["torch"])
    version, inner, gauss = state["python"]
    random.setstate((version, tuple(inner), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    if "numpy" in state and "numpy" in sys.modules:
        sys.modules["numpy"].random.set_state(tuple(state["numpy"]))
    for generator, value in zip(_generators(loader), state["loader"], strict=True):
        generator.set_state(value)


def _generators(loader: Any) -> list[torch.Generator]:
    owners = (loader, getattr(loader, "sampler", None), getattr(loader, "dataset", None))
    found = [getattr(owner, "generator", None) for owner in owners]
    unique = {id(g): g for g in found if isinstance(g, torch.Generator)}
    return list(unique.values())


def save(path: str | Path, content: Mapping[str, Any], loader: Any) -> None:
    """Writes the file, whole or not at all. In several processes all call it, and the first writes."""
    states = [random_state(loader)]
    if initialised():
        states = [{} for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather_object(states, random_state(loader))
    if rank() == 0:
        with atomic_write(path) as temporary:
            whole = {"format": FORMAT, "version": VERSION, "written_by": __version__, "random": states, **content}
            torch.save(whole, temporary)


def load(path: str | Path, device: torch.device) -> dict[str, Any]:
    """Reads what ``save`` wrote, without running code from it.

    Raises:
        FileNotFoundError: without such a file.
        CheckpointError: for a file that is not a checkpoint of this format, or of another number of processes.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"compress: {path} must be a checkpoint of a search; got {reason}.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"compress: {path} must be a checkpoint of a search; got another file.")
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"compress: {path} must have format version {VERSION}; got version {content.get('version')}, written by "
            f"lightkernels {content.get('written_by')}. Hint: begin again with this release ({__version__})"
        )
    world = torch.distributed.get_world_size() if initialised() else 1
    if len(content["random"]) != world:
        raise CheckpointError(
            f"compress: {path} must be resumed by {len(content['random'])} processes, as it was written; got {world}."
        )
    return content

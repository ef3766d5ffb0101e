"""Tuned kernel configurations: data beside the code, the nearest one where none fits, never tuned at run time.

A file ``tuned/<device>/<op>.json`` holds::

    {"schema": 1,
     "entries": [{"pass": "auto fwd", "key": {"c": 64, "dtype": "bfloat16"}, "config": {"backend": "cuda"}, "us": 9.1},
                 {"pass": "triton fwd", "key": {"c": 64, "dtype": "bfloat16"}, "config": {"warps": 4}, "us": 9.4}]}

``auto PASS`` says which backend was fastest, ``BACKEND PASS`` which tile of its kernel. Numbers of a key are compared
by the distance of their logarithms; strings must be equal. The user's own files, under ``LIGHTKERNELS_CACHE_DIR``, come
before the package's. ``lightkernels tune`` writes them.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import torch

from lightkernels._core import env

SCHEMA = 1
REACH = 6.0  # doublings of sizes, all together, up to which another size's fastest backend is believed
PACKAGED = Path(__file__).resolve().parent.parent / "tuned"
Key = Mapping[str, int | str]
Form = TypeVar("Form", bound=Any)


class Tuned(NamedTuple):
    """A configuration, where it came from, and how far its key is from the one asked for (0: exact)."""

    config: dict[str, Any]
    source: str
    distance: float


def device_name(device: torch.device) -> str:
    """The folder of a device's files: ``sm90-NVIDIA_H200``, ``cpu``, or ``cuda`` for a device that is not here."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return device.type
    major, minor = torch.cuda.get_device_capability(device)
    name = torch.cuda.get_device_name(device).replace(" ", "_").replace("/", "_")
    return f"sm{major}{minor}-{name}"


def user_folder() -> Path:
    return env.CACHE_DIR / "tuned"


@functools.cache
def entries(op: str, device: str) -> tuple[dict[str, Any], ...]:
    """All entries for an op and device, the user's first; a broken file is an error that names it."""
    found: list[dict[str, Any]] = []
    for folder in (user_folder(), PACKAGED):
        path = folder / device / f"{op}.json"
        if path.is_file():
            found += [{**entry, "source": str(path)} for entry in read(path)]
    return tuple(found)


def read(path: Path) -> list[dict[str, Any]]:
    """The entries of one file.

    Raises:
        ValueError: the file is not valid JSON, of another schema, or an entry lacks ``pass``, ``key`` or ``config``.
    """
    try:
        data = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"tuned configurations: {path} is not valid JSON: {error}") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise ValueError(f"tuned configurations: {path} must have schema {SCHEMA}; delete or tune again")
    for i, entry in enumerate(data.get("entries", ())):
        missing = {"pass", "key", "config"} - set(entry)
        if missing:
            raise ValueError(f"tuned configurations: entry {i} of {path} lacks {', '.join(sorted(missing))}")
    return list(data.get("entries", ()))


def key_of(spec: Any) -> dict[str, int | str]:
    """What tells one call of an operator from another: the attributes that its Spec names in ``tuned_by``."""
    key: dict[str, int | str] = {}
    for name in spec.tuned_by:
        value = getattr(spec, name)
        if isinstance(value, int) and not isinstance(value, bool):
            key[name] = value
        else:
            text = "-".join(map(str, value)) if isinstance(value, tuple) else str(value)
            key[name] = text.removeprefix("torch.")
    return key


def fastest(op: str, kind: str, device: str, spec: Any) -> Tuned | None:
    """The backend that was fastest in a pass near such a call on ``device``; None where none was timed within reach."""
    found = nearest(op, f"auto {kind}", device, key_of(spec))
    return found if found is not None and found.distance <= REACH else None


class Trial(NamedTuple):
    """Inside ``trial``: the tile to take, and every tile taken with its pass and key."""

    config: Mapping[str, int] | None
    asked: list[tuple[str, dict[str, int | str], dict[str, int]]]


_trial: ContextVar[Trial | None] = ContextVar("lightkernels_trial", default=None)


@contextlib.contextmanager
def trial(config: Mapping[str, int] | None) -> Iterator[Trial]:
    """Inside, ``tile`` answers ``config``, or the heuristic's for None, whatever the files say."""
    now = Trial(config, [])
    token = _trial.set(now)
    try:
        yield now
    finally:
        _trial.reset(token)


def tile(op: str, spec: Any, kind: str, form: type[Form], heuristic: Callable[[], Form], **more: str) -> Form:
    """The tile of a Triton kernel for a pass: the tuned one nearest to the call, else the heuristic's.

    Args:
        form: the tile's NamedTuple class, of whole numbers.
        more: added to the key.
    """
    name = f"triton {kind}"
    found: Form | None = spec.cache.get(name)
    if found is None:
        key, now = {**key_of(spec), **more}, _trial.get()
        if now is None:
            tuned = lookup(op, name, torch.device(spec.device), key)
            now = Trial(None if tuned is None else tuned.config, [])
        found = spec.cache[name] = heuristic() if now.config is None else form(**now.config)
        now.asked.append((name, key, found._asdict()))
    return cast(Form, found)


def lookup(op: str, primitive: str, device: torch.device, key: Key) -> Tuned | None:
    """The entry nearest to ``key``, or None if no entry's strings fit; the caller then has its own heuristic."""
    return nearest(op, primitive, device_name(device), key)


def nearest(op: str, primitive: str, device: str, key: Key) -> Tuned | None:
    """As ``lookup``, for a device's folder."""
    best: Tuned | None = None
    for entry in entries(op, device):
        if entry["pass"] != primitive:
            continue
        distance = _distance(key, entry["key"])
        if distance is not None and (best is None or distance < best.distance):
            best = Tuned(entry["config"], entry["source"], distance)
    return best


def _distance(asked: Key, known: Key) -> float | None:
    if set(asked) != set(known):
        return None
    total = 0.0
    for name, value in asked.items():
        other = known[name]
        if isinstance(value, str) or isinstance(other, str):
            if value != other:
                return None
        else:
            total += abs(math.log2(max(value, 1)) - math.log2(max(other, 1)))
    return total


def save(op: str, device: torch.device, new: list[dict[str, Any]]) -> Path:
    """Add entries to the user's file; an entry with the same pass and key is replaced."""
    path = user_folder() / device_name(device) / f"{op}.json"
    old = read(path) if path.is_file() else []
    fresh = {(e["pass"], json.dumps(e["key"], sort_keys=True)) for e in new}
    kept = [e for e in old if (e["pass"], json.dumps(e["key"], sort_keys=True)) not in fresh]
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(handle, "w") as file:
        json.dump({"schema": SCHEMA, "entries": kept + new}, file, indent=1)
    Path(temporary).replace(path)
    entries.cache_clear()
    return path

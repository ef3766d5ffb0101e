"""What options name: a network of the zoo, or a function of the user's."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lightkernels import models


def network(command: str, name: str) -> tuple[nn.Module, Mapping[str, Any] | None]:
    """The network ``name`` and, if it is of the zoo, what makes it again; or what package.module:function returns.

    Raises:
        ValueError: there is no such network or function.
        TypeError: the function returns something else.
    """
    if ":" not in name:
        return models.create_model(name, num_classes=10), {"name": name, "num_classes": 10}
    made = call(command, name)
    if not isinstance(made, nn.Module):
        raise TypeError(
            f"{command}: --model must name a function that returns an nn.Module; got {type(made).__name__}."
        )
    return made, None


def call(command: str, name: str) -> object:
    """What ``package.module:function`` returns; the current folder is searched as well."""
    module, _, function = name.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{command}: {name!r} must name a function as in package.module:function; got {error}."
        ) from error
    made: object = found()
    return made

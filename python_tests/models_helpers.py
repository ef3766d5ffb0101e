"""The zoo's networks as their shapes alone, and their counts."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pytest
import torch

from lightkernels.models import Count, count, counting, create_model


@contextmanager
def undrawn() -> Iterator[None]:
    """Inside, modules are made without memory, and nothing is drawn for their weights."""
    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        for name in ("normal_", "uniform_", "kaiming_normal_", "kaiming_uniform_", "zeros_", "ones_"):
            patch.setattr(torch.nn.init, name, lambda t, *args, **kwargs: t)
        yield


def counted(model: torch.nn.Module, size: tuple[int, int, int], convention: str = "macs") -> Count:
    """``count`` of a network without memory that nobody needs afterwards: it runs itself, not its copy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "_meta_copy", lambda given: given)
        return count(model, size, convention)


@cache
def _measured(name, classes, size, convention, options):
    with undrawn():
        model = create_model(name, num_classes=classes, **dict(options))
    return counted(model, size, convention)


def measured(name, classes, size, convention="macs", **options) -> Count:
    """The counts of a network by its name; known ones are not found again."""
    return _measured(name, classes, size, convention, tuple(sorted(options.items())))

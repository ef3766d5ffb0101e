"""The zoo by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from torch import nn

from lightkernels._core.spec import fail_type, require

_builders: dict[str, Callable[..., nn.Module]] = {}


def register(name: str, build: Callable[..., nn.Module], **options: Any) -> None:
    """`create_model(name, ...)` calls `build` with these options, which the caller's options override."""
    require(name not in _builders, "register", "name", "be new", name)
    _builders[name] = partial(build, **options)


def list_models(pattern: str = "*") -> list[str]:
    """Names of the networks that `create_model` makes and that match a shell pattern, sorted.

    The builders go by their own names: ``pydmobilenet``, ``multiception_net``, ``mobilenetv2``,
    ``dilated_mobilenetv2``. The papers' networks: ``pydmobilenet_<mid>_<depth>_<alpha in percent>``,
    ``cifar_<network>_<layer>`` and ``stl_mobilenetv2_<layer>`` of the Multiception paper,
    ``dilated_mobilenetv2_split``, and those that compression starts from: ``cifar_resnet20``, ``cifar_resnet56``,
    ``vgg16_cifar``, ``resnet18_cifar``, ``densenet121_16`` and ``mobilenetv2_16``.

    >>> from lightkernels.models import list_models
    >>> list_models("pydmobilenet_add_29_*")[:2]
    ['pydmobilenet_add_29_025', 'pydmobilenet_add_29_050']
    """
    return sorted(name for name in _builders if fnmatchcase(name, pattern))


def create_model(name: str, *, num_classes: int, **options: Any) -> nn.Module:
    """The network called `name`; `options` are those of its builder and override what the name says.

    Raises ValueError for an unknown name, and what the builder raises for its options.
    `with torch.device("meta"):` around the call makes it without allocating anything.

    >>> from lightkernels.models import create_model
    >>> sum(p.numel() for p in create_model("pydmobilenet_add_29_050", num_classes=10).parameters())
    103904
    """
    if not isinstance(name, str):
        fail_type("create_model", "name", "be a str", name)
    if name not in _builders:
        close = difflib.get_close_matches(name, _builders, n=1)
        hint = f"did you mean {close[0]}?" if close else "list_models() gives all names."
        require(False, "create_model", "name", "be one of list_models()", name, hint=hint)
    return _builders[name](num_classes=num_classes, **options)

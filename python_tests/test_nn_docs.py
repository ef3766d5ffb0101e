"""The examples in the docstrings of modules and networks run and say what they print."""

import doctest
import importlib
import pkgutil

import pytest

from lightkernels import models, nn

MODULES = [
    f"{package.__name__}.{module.name}" for package in (nn, models) for module in pkgutil.iter_modules(package.__path__)
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("package", [nn, models], ids=lambda package: package.__name__)
def test_everything_public_says_what_it_equals(package):
    public = [
        getattr(package, name) for name in package.__all__ if name not in ("Count", "create_model", "list_models")
    ]
    assert [thing.__name__ for thing in public if "Equivalent to:" not in (thing.__doc__ or "")] == []
    assert [thing.__name__ for thing in public if ">>>" not in thing.__doc__] == []

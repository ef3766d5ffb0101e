"""What a missing extra says."""

from __future__ import annotations

import importlib.util


def need(module: str, extra: str) -> None:
    """Raises ImportError with the pip command that mends it unless ``module`` can be imported."""
    try:
        found = importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        found = False
    if not found:
        raise ImportError(
            f'compress: {module} must be installed for this; got none. Hint: pip install "lightkernels[{extra}]"'
        )

"""Environment variables, read once when the package is imported. docs/environment.md has the table."""

from __future__ import annotations

import logging
import os
from pathlib import Path

BACKEND = os.environ.get("LIGHTKERNELS_BACKEND") or "auto"
STRICT = os.environ.get("LIGHTKERNELS_STRICT") == "1"
AUTOTUNE = os.environ.get("LIGHTKERNELS_AUTOTUNE") == "1"
DISABLE_NATIVE = os.environ.get("LIGHTKERNELS_DISABLE_NATIVE") == "1"
CPU_ISA = os.environ.get("LIGHTKERNELS_CPU_ISA") or None
# expanduser leaves the ~ of a user without a home, as in containers, where Path.home() raises.
CACHE_DIR = Path(os.environ.get("LIGHTKERNELS_CACHE_DIR") or os.path.expanduser("~/.cache/lightkernels"))  # noqa: PTH111
LOG = os.environ.get("LIGHTKERNELS_LOG") or "WARNING"

logger = logging.getLogger("lightkernels")
if logger.level == logging.NOTSET:
    _level = logging.getLevelName(LOG.upper())
    logger.setLevel(_level if isinstance(_level, int) else logging.WARNING)
    if "LIGHTKERNELS_LOG" in os.environ and not logger.hasHandlers():
        logger.addHandler(logging.StreamHandler())  # without one Python shows warnings alone

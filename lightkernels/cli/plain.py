"""The commands that need torch alone."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from lightkernels.cli import COMMANDS


def run(name: str, args: Sequence[str]) -> int:
    """Runs ``info`` or ``explain``; returns the exit code."""
    try:
        return _info(args) if name == "info" else _explain(args)
    except SystemExit as stop:  # argparse: help, or an error it has printed
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)


def _info(args: Sequence[str]) -> int:
    from lightkernels.cli import info

    parser = argparse.ArgumentParser("lightkernels info", description=COMMANDS["info"].help)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    as_json = parser.parse_args(args).json
    found = info.collect()
    print(json.dumps(found, indent=2) if as_json else info.text(found))
    return 0


def _explain(args: Sequence[str]) -> int:
    from lightkernels._core.backends import BackendUnavailable
    from lightkernels.cli import explain

    try:
        print(explain.run(args))
    except (ValueError, TypeError, BackendUnavailable) as error:
        print(f"lightkernels explain: {error}", file=sys.stderr)
        return 1
    return 0

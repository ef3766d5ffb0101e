"""The ``lightkernels`` command. ``info`` and ``explain`` need torch alone; the others their extra."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

INTERRUPTED = 130


@dataclass(frozen=True)
class Command:
    """What the help says, and the extra that brings the modules (by import name) that the command needs."""

    help: str
    extra: str = ""
    modules: tuple[str, ...] = ()


_TERMINAL = ("typer", "rich")
_TRAIN = (*_TERMINAL, "sklearn", "matplotlib")
COMMANDS = {
    "quickstart": Command("Train a small network on handwritten digits, check it, time it.", "train", _TRAIN),
    "evaluate": Command("Test a checkpoint that quickstart wrote.", "train", _TRAIN),
    "info": Command("Versions, instruction sets, devices, and which backend runs what."),
    "explain": Command("Which backend would run one call, and why not the others."),
    "models": Command("The networks of the zoo beside their papers' rows.", "train", _TERMINAL),
    "compress": Command("Exchange a network's bulky operators for light ones, by a search.", "train", _TRAIN),
    "tune": Command(
        "Time backends and tiles on a GPU, so that the automatic choice is the fastest.", "bench", _TERMINAL
    ),
    "bench": Command("Time an operator against the best of PyTorch on this machine.", "bench", _TERMINAL),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(args)
    except KeyboardInterrupt:
        return interrupted()
    except OSError as error:  # as in `lightkernels models | head`; Python would complain when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # a full disk
            print(f"lightkernels: {error}", file=sys.stderr)
        return 1


def interrupted() -> int:
    # An interrupt that passed through the exec of a text, as imports of dataclasses run, makes Python end by the signal
    # whatever the exit code; the next such exec makes it forget that.
    exec("")
    print("\nlightkernels: interrupted; no file is half-written", file=sys.stderr)
    return INTERRUPTED


def _dispatch(args: list[str]) -> int:
    name = args[0] if args else "--help"
    if name in ("info", "explain"):
        from lightkernels.cli import plain

        return plain.run(name, args[1:])
    if name in ("--version", "-V"):
        from lightkernels import __version__

        print(f"lightkernels {__version__}")
        return 0
    if name in ("--help", "-h", "help"):
        print(overview())
        return 0
    if name not in COMMANDS:
        print(f"lightkernels: no command {name!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    lacking = missing(COMMANDS[name].modules)
    if lacking:
        mend = f'pip install "lightkernels[{COMMANDS[name].extra}]"'
        print(f"lightkernels {name}: needs {', '.join(lacking)}. Hint: {mend}", file=sys.stderr)
        return 1
    from lightkernels.cli.app import app

    try:
        app(args=args, prog_name="lightkernels")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def missing(modules: Sequence[str]) -> list[str]:
    """Those that cannot be found."""

    def found(module: str) -> bool:
        try:
            return importlib.util.find_spec(module) is not None
        except (ImportError, ValueError):
            return False

    return [module for module in modules if not found(module)]


def overview() -> str:
    width = max(map(len, COMMANDS))
    lines = ["usage: lightkernels COMMAND [options]", ""]
    lines += [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", "lightkernels COMMAND --help says more; lightkernels --version prints the version."])

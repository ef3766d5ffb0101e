"""How a run tells where it is: a bar where rich and a terminal are, a line an epoch elsewhere, or the caller's own."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Tell = Callable[[dict[str, Any]], None]
Progress = bool | Tell


class Reporter:
    """Told of every step and every epoch."""

    def step(self, epoch: int, done: int, total: int | None) -> None: ...

    def epoch(self, record: dict[str, Any]) -> None: ...


class _Calls(Reporter):
    def __init__(self, tell: Tell) -> None:
        self.tell = tell

    def epoch(self, record: dict[str, Any]) -> None:
        self.tell(record)


class _Lines(Reporter):
    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def epoch(self, record: dict[str, Any]) -> None:
        print(line(record, self.epochs), file=sys.stderr, flush=True)


class _Bar(Reporter):
    def __init__(self, bar: Any, title: str, epochs: int) -> None:
        self.bar, self.title, self.epochs = bar, title, epochs
        self.task = bar.add_task(title, total=None)

    def step(self, epoch: int, done: int, total: int | None) -> None:
        whole = None if total is None else total * self.epochs
        self.bar.update(self.task, total=whole, completed=done + epoch * (total or 0))

    def epoch(self, record: dict[str, Any]) -> None:
        self.bar.update(self.task, description=line(record, self.epochs))


def line(record: dict[str, Any], epochs: int) -> str:
    """One epoch in words."""
    text = f"{record['phase']:<9} {record['epoch'] + 1:3}/{epochs}  loss {record['loss']:.3f}"
    if "pcr" in record:
        text += f"  PCR {record['pcr']:.2f}  FCR {record['fcr']:.2f}  flips {record['flips']}"
        text += f"  undecided {record['undecided']}"
    if record.get("accuracy") is not None:
        text += f"  accuracy {100 * record['accuracy']:.2f} %"
    return text


@contextmanager
def reporting(progress: Progress, title: str, epochs: int) -> Iterator[Reporter]:
    """``progress``: True, False, or a function that is called with each epoch's record."""
    if callable(progress):
        yield _Calls(progress)
    elif not progress:
        yield Reporter()
    elif sys.stderr.isatty() and importlib.util.find_spec("rich") is not None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn())
        with RichProgress(*columns, console=Console(stderr=True, highlight=False)) as bar:
            yield _Bar(bar, title, epochs)
    else:
        yield _Lines(epochs)

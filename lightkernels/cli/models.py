"""``lightkernels models``: every network beside its paper's row."""

from __future__ import annotations

from fnmatch import fnmatchcase
from itertools import groupby

import torch
from rich.console import Console
from rich.progress import track
from rich.text import Text

from lightkernels.cli.terminal import console, heading, table
from lightkernels.models import count, create_model, list_models
from lightkernels.models.paper_rows import PAPER_ROWS, PaperRow, deviation


def run(pattern: str, check: bool) -> int:
    """Prints the networks whose names match; with ``check``, counts each anew and returns 1 for any difference."""
    out = console()
    rows = [row for row in PAPER_ROWS if fnmatchcase(row.model, pattern)]
    names = list_models(pattern)
    if not names:
        out.print(f"no network is called {pattern!r}; `lightkernels models` prints all", markup=False)
        return 1
    for paper, group in groupby(rows, key=lambda row: row.paper):
        _print(out, paper, list(group))
    others = [name for name in names if name not in {row.model for row in rows}]
    if others:
        heading(out, "In no paper's table; parameters for 10 classes")
        made = table("network", "parameters", right=(1,))
        for name in others:
            with torch.device("meta"):
                network = create_model(name, num_classes=10)
            made.add_row(name, f"{sum(p.numel() for p in network.parameters()):,}")
        out.print(made)
    return _check(out, rows) if check else 0


def _print(out: Console, paper: str, rows: list[PaperRow]) -> None:
    heading(out, paper)
    made = table(
        *("network", "paper's name", "data, classes", "parameters", "paper", "off by"),
        *("operations", "paper", "off by", "note"),
        right=(3, 4, 5, 6, 7, 8),
    )
    notes: list[str] = []
    for row in rows:
        if row.note and row.note not in notes:
            notes.append(row.note)
        made.add_row(
            row.model,
            row.row,
            f"{row.dataset}, {row.num_classes}",
            *_figures(row.params, row.printed_params, row.params_agree),
            *_figures(row.ops, row.printed_ops, row.ops_agree),
            Text(f"[{notes.index(row.note) + 1}]", style=_style(row.note)) if row.note else "",
        )
    out.print(made)
    for i, note in enumerate(notes):
        out.print(Text(f"[{i + 1}] {note}", style=_style(note)))


def _style(note: str) -> str:
    return "yellow" if note.startswith("known") else "dim"


def _figures(exact: int, printed: str | None, agree: bool | None) -> tuple[str, str, Text]:
    """Ours, the paper's, and the deviation: plain where it is within the paper's rounding."""
    off = deviation(printed, exact)
    if printed is None or off is None:
        return f"{exact:,}", "-", Text("-", style="dim")
    return (
        f"{exact:,}",
        f"{printed} M",
        Text(f"{round(100 * off, 2) + 0.0:+.2f} %", style="green" if agree else "yellow"),
    )


def _check(out: Console, rows: list[PaperRow]) -> int:
    wrong = 0
    for row in track(rows, "counting", console=out, transient=True):
        with torch.device("meta"):
            network = create_model(row.model, num_classes=row.num_classes, **row.options)
            counted = create_model(row.model, num_classes=row.num_classes, **{**row.options, **row.ops_options})
        whole = count(counted, row.input_size, row.convention)
        # Where the columns describe two networks, the convention has no parameters of its own.
        found = (sum(p.numel() for p in network.parameters()) if row.ops_options else whole.params, whole.ops)
        if found != (row.params, row.ops):
            wrong += 1
            out.print(f"{row.call}: counted {found}, the table above says {(row.params, row.ops)}", markup=False)
    out.print(f"\ncounted anew: {len(rows) - wrong} of {len(rows)} rows as printed above")
    return int(wrong > 0)

"""How tables and numbers look in a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

PIPED_WIDTH = 200


def console() -> Console:
    """As wide as the terminal; wide enough for every table where there is none."""
    usual = Console(highlight=False)
    return usual if usual.is_terminal else Console(highlight=False, width=max(usual.width, PIPED_WIDTH))


def table(*columns: str, right: tuple[int, ...] = ()) -> Table:
    """A table without a frame; the columns ``right`` hold numbers. A narrow terminal folds the others."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, column in enumerate(columns):
        number = i in right
        justify, overflow = ("right", "ellipsis") if number else ("left", "fold")
        made.add_column(column, justify=justify, overflow=overflow, no_wrap=number, header_style="dim")  # type: ignore[arg-type]
    return made


def heading(out: Console, text: str) -> None:
    out.print(f"\n[bold]{text}[/]")


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"

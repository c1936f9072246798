"""Tables on the terminal, in a pipe and in a text file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

# A pipe has no width of its own; a table cut at 80 columns there would lose figures.
_WIDTH_OF_A_PIPE = 120


def output_console() -> Console:
    """Standard output: as wide as the terminal; in a pipe, 120 columns."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=_WIDTH_OF_A_PIPE)


def print_table(
    title: str,
    header: Iterable[str],
    rows: Iterable[Iterable[object]],
    *,
    console: Console | None = None,
) -> None:
    """Print a table with a title; columns of figures are set to the right."""
    from rich.table import Table

    cells = [[str(cell) for cell in row] for row in rows]
    table = Table(title=title, title_justify="left", title_style="bold")
    for name, column in zip(header, zip(*cells, strict=True), strict=True):
        figures = all(cell[:1].isdigit() for cell in column if cell)
        table.add_column(name, justify="right" if figures else "left")
    for row in cells:
        table.add_row(*row)
    (console or output_console()).print(table)

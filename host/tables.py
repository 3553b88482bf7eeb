"""Tables for the terminal: numbers are never cut, text folds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text


def table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], marked: int | None = None
) -> RenderableType:
    """A titled table. A column whose name starts with ">" holds numbers, aligned right; row `marked` stands out."""
    grid = Table(
        box=SIMPLE_HEAD, show_header=any(name.strip(">") for name in columns), pad_edge=False, collapse_padding=True
    )
    for name in columns:
        number = name.startswith(">")
        grid.add_column(
            name.lstrip(">"), justify="right" if number else "left", no_wrap=number, overflow="fold", vertical="top"
        )
    for index, row in enumerate(rows):
        grid.add_row(*row, style="bold green" if index == marked else None)
    return Group(Text(title, style="bold"), grid)

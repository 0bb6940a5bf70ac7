"""An empty table in the one style of all tables, its columns and its rows. Cells are never read as markup."""

from __future__ import annotations

from typing import Literal

from rich import box
from rich.table import Table
from rich.text import Text


def new_table(title: str) -> Table:
    """A table without columns, under a title."""
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )


def add_words(table: Table, *names: str) -> None:
    """Add columns of words, which are folded where room is short."""
    for name in names:
        table.add_column(name, overflow="fold", vertical="top")


def add_numbers(table: Table, *names: str) -> None:
    """Add columns of numbers, which keep their width."""
    justify: Literal["right"] = "right"
    for name in names:
        table.add_column(name, justify=justify, no_wrap=True)


def add_row(table: Table, *cells: str) -> None:
    """Add a row of plain text."""
    table.add_row(*(Text(cell) for cell in cells))

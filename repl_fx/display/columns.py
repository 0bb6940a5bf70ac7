"""Tables as plain data, which the terminal and notebooks show in one style. Cells are never read as markup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import rich.table
from rich import box
from rich.text import Text


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        kind: `words` are folded where room is short, a `number` and a `word` keep their width; on a page, the name of a
            `block` leads to the picture, and its `status` has a colour.
    """

    name: str
    kind: Literal["words", "number", "word", "block", "status"] = "words"

    @property
    def number(self) -> bool:
        """Tell whether its cells stand at the right."""
        return self.kind == "number"


def words(*names: str) -> tuple[Column, ...]:
    """Columns of words."""
    return tuple(Column(name) for name in names)


def numbers(*names: str) -> tuple[Column, ...]:
    """Columns of numbers."""
    return tuple(Column(name, "number") for name in names)


@dataclass(frozen=True)
class Table:
    """A table under a title; on a page, one that is folded shows its title alone until it is opened."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    folded: bool = False

    def __rich__(self) -> rich.table.Table:
        shown = rich.table.Table(
            title=self.title,
            title_justify="left",
            title_style="bold",
            header_style="",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 1, 0, 0),
            show_edge=False,
        )
        for column in self.columns:
            whole = column.kind in ("number", "word")
            shown.add_column(
                column.name,
                justify="right" if column.number else "left",
                no_wrap=whole,
                overflow="ellipsis" if whole else "fold",
            )
        for row in self.rows:
            shown.add_row(*map(Text, row))
        return shown

"""Tables as plain data, which the terminal and notebooks show in one style. Cells are never read as markup."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from operator import methodcaller
from typing import Literal

import rich.table
from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

# Between two columns; the width below which words are not folded; and the shortest parent that a mark stands for.
_GAP, _LEAST_WORDS, _LEAST_PARENT = 2, 16, 12
# The path of a module with such a parent.
_PATH = re.compile(rf"(?<!\S)(?=[\w#.]{{{_LEAST_PARENT},}}\.[\w#])[A-Za-z_][\w#]*(?:\.[\w#]+)+")


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

    @property
    def whole(self) -> bool:
        """Tell whether its cells are never folded."""
        return self.kind in ("number", "word")


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

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        """The table in the width there is: columns without room stand below, behind the names of their rows again.

        Where it is too narrow, names that begin alike are shortened, too.
        """
        room, columns = options.max_width, list(self.columns)
        cells = [[Text(column.name) for column in columns], *([Text(cell) for cell in row] for row in self.rows)]
        widths = [max(_width(row[place]) for row in cells) for place in range(len(columns))]
        if sum(widths) + _GAP * (len(columns) - 1) > room:
            cells[1:] = _without_repetition(columns, cells[1:], "..." if options.ascii_only else "…")
        least = [
            width if column.whole else min(width, _LEAST_WORDS) for column, width in zip(columns, widths, strict=True)
        ]
        for number, places in enumerate(_parts(columns, least, room)):
            shown = _drawn("" if number else self.title, [columns[place] for place in places])
            for row in cells[1:]:
                shown.add_row(*(row[place] for place in places))
            if number:
                yield ""
            yield shown


def _width(cell: Text) -> int:
    return max((cell_len(line) for line in cell.plain.splitlines()), default=0)


def _parts(columns: Sequence[Column], least: Sequence[int], room: int) -> Iterator[list[int]]:
    """The places of the columns that stand beside each other; first, each time, those that name the rows."""
    kinds = [column.number for column in columns]
    named = kinds.index(False) if False in kinds else 0
    key = kinds.index(True, named) if True in kinds[named:] else len(columns)
    shown = list(range(key))
    for place in range(key, len(columns)):
        if len(shown) > key and sum(least[one] + _GAP for one in (*shown, place)) - _GAP > room:
            yield shown
            shown = list(range(key))
        shown.append(place)
    yield shown


def _without_repetition(columns: Sequence[Column], rows: list[list[Text]], mark: str) -> list[list[Text]]:
    """Rows in which long paths are shortened, and a sentence that stands in the row above is not said again."""
    folded = [place for place, column in enumerate(columns) if not column.whole]
    shown, above = [], [""] * len(columns)
    for row in rows:
        cells = [cell.plain for cell in row]
        shown.append(cells[:])
        for place in folded:
            if cells[place] == above[place] and " " in cells[place] and len(cells[place]) > _LEAST_WORDS:
                shown[-1][place] = "as above"
        above = cells
    paths = [path for row in shown for place in folded for path in _PATH.findall(row[place])]
    short = _shortened(paths, mark)
    for cells in shown:
        for place in folded:
            cells[place] = _PATH.sub(lambda _: next(short), cells[place])
    return [[Text(cell) for cell in cells] for cells in shown]


def _shortened(paths: Sequence[str], mark: str) -> Iterator[str]:
    """Paths, with a mark for the parent that they share with one before, which is whole."""
    known = "."
    for place, path in enumerate(paths):
        if path.startswith(known):
            yield f"{mark}.{path.removeprefix(known)}"
            continue
        parents = [path[: dot.end()] for dot in re.finditer(r"\.", path) if dot.end() > _LEAST_PARENT]
        after = paths[place + 1 :]
        saved = {one: len(one) * sum(1 for _ in takewhile(methodcaller("startswith", one), after)) for one in parents}
        known = max(parents, key=saved.__getitem__, default=".")
        yield path


def _drawn(title: str, columns: Sequence[Column]) -> rich.table.Table:
    """An empty table in the one style."""
    shown = rich.table.Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        header_style="",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    for column in columns:
        overflow: Literal["ellipsis", "fold"] = "ellipsis" if column.whole else "fold"
        justify: Literal["right", "left"] = "right" if column.number else "left"
        shown.add_column(column.name, justify=justify, no_wrap=column.whole, overflow=overflow)
    return shown

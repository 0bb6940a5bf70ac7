"""Figures of bars on the terminal, and the same as a picture."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from inspect import signature

from rich.bar import Bar
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.terminal_theme import DEFAULT_TERMINAL_THEME
from rich.text import Text

from repl_fx.reporting.figures import Bars

_NAME, _BAR, _NUMBER = 12, 48, 10
_WIDTH = _NAME + _BAR + _NUMBER + 2
# Of a bar beside a long name.
_SHORTEST = 24
_COLOUR = "blue"
_RICHS = signature(Console.export_svg).parameters["code_format"].default
# Rich's own, without the fonts that it fetches.
_PICTURE = re.sub(r"<!--.*?-->|@font-face \{\{.*?\n    \}\}", "", _RICHS, flags=re.DOTALL)


def chart_of(figures: Sequence[Bars]) -> Group:
    """The bars of each figure below its title."""
    longest = max((len(bar.name) for figure in figures for bar in figure.bars), default=0)
    wide = min(max(longest, _NAME), _WIDTH - _NUMBER - 2 - _SHORTEST)
    room = _WIDTH - _NUMBER - 2 - wide
    lines: list[RenderableType] = []
    for figure in figures:
        table = Table.grid(padding=(0, 1, 0, 0))
        table.add_column(width=wide, overflow="fold")
        table.add_column(width=room)
        table.add_column(width=_NUMBER, no_wrap=True, justify="right")
        most = max(bar.before for bar in figure.bars) or 1.0
        for bar in figure.bars:
            table.add_row(Text(bar.name), Bar(most, 0, bar.before, width=room, color=_COLOUR), Text(bar.text))
        title = f"{figure.title}, {figure.unit}" if figure.unit else figure.title
        lines += [*([""] if lines else []), Text(title, style="bold"), table]
    return Group(*lines)


def picture_of(chart: Group, title: str) -> str:
    """A chart as the text of an SVG file, under a title."""
    console = Console(record=True, width=_WIDTH, file=io.StringIO(), markup=False, emoji=False, highlight=False)
    console.print(chart)
    return console.export_svg(title=title, theme=DEFAULT_TERMINAL_THEME, code_format=_PICTURE, unique_id="repl-fx")

"""Charts of measured costs and of scores: bars for the terminal, and the same as a picture."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import TypeVar

from rich.bar import Bar
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.terminal_theme import DEFAULT_TERMINAL_THEME
from rich.text import Text

from repl_fx.benchmarking.results import Benchmark, Row
from repl_fx.display.numbers import milliseconds, size
from repl_fx.running.timing import Spread
from repl_fx.scoring.scores import Kind, Scores

_NAME, _BAR, _NUMBER = 12, 48, 10
_WIDTH = _NAME + _BAR + _NUMBER + 2
# Of a bar beside a long name.
_SHORTEST = 24
_COLOUR = "blue"
_Row = TypeVar("_Row", bound=Row)
# The name, length and text of each.
_Bars = list[tuple[str, float, str]]
# Rich's own has the frame of a window, and fetches a font.
_PICTURE = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">
<style>
.{unique_id}-matrix {{ font-family: monospace; font-size: {char_height}px; line-height: {line_height}px; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal"><rect width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}
</defs>
<rect width="{width}" height="{height}" fill="white"/>
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def benchmark_chart(measured: Benchmark) -> Group:
    """A bar for the median of each variant, in groups: steps of training, memory, latencies."""
    return _chart(_groups(measured), _NAME)


def scores_chart(scores: Scores, kind: Kind) -> Group:
    """A bar for each block, in a group for each repeat; none for a loss that falls without the block."""
    by_block, titles = scores.of(kind), {"loss": "rise of the loss without the block"}
    groups = []
    for repeat, blocks in groupby(scores.blocks, key=lambda score: score.repeat):
        known = [(name, by_block[name]) for name in (score.block for score in blocks) if name in by_block]
        if known:
            bars = [(name, max(value, 0.0), f"{value:.4g}") for name, value in known]
            groups.append((f"{repeat}: {titles.get(kind, kind)}", bars))
    longest = max((len(score.block) for score in scores.blocks), default=0)
    return _chart(groups, min(max(longest, _NAME), _WIDTH - _NUMBER - 2 - _SHORTEST))


def _chart(groups: Iterable[tuple[str, _Bars]], wide: int) -> Group:
    """Groups of bars, with names of some width."""
    room = _WIDTH - _NUMBER - 2 - wide
    lines: list[RenderableType] = []
    for title, bars in groups:
        table = Table.grid(padding=(0, 1, 0, 0))
        table.add_column(width=wide, overflow="fold")
        table.add_column(width=room)
        table.add_column(width=_NUMBER, no_wrap=True, justify="right")
        longest = max(length for _, length, _ in bars)
        for name, length, shown in bars:
            table.add_row(Text(name), Bar(longest or 1.0, 0, length, width=room, color=_COLOUR), Text(shown))
        lines += [*([""] if lines else []), Text(title, style="bold"), table]
    return Group(*lines)


def picture_of(chart: Group, title: str) -> str:
    """A chart as the text of an SVG file, under a title."""
    console = Console(record=True, width=_WIDTH, file=io.StringIO(), markup=False, emoji=False, highlight=False)
    console.print(Text(title, style="bold"))
    console.print()
    console.print(chart)
    return console.export_svg(theme=DEFAULT_TERMINAL_THEME, code_format=_PICTURE, unique_id="repl-fx")


def _groups(measured: Benchmark) -> Iterator[tuple[str, _Bars]]:
    """The titles of the groups that hold something, with the name, length and text of each bar."""
    yield from _group("Step of training, ms", _medians(measured.training))
    kept = {"peak": "Peak memory of a step", "kept": "Kept for the backward pass"}[measured.memory]
    held = ((row.variant, measured.bytes_of(row)) for row in measured.training)
    yield from _group(kept, ((name, number) for name, number in held if number is not None), lambda n: size(int(n)))
    for (runtime, batch), rows in groupby(measured.inference, key=lambda row: (row.runtime, row.batch)):
        at = f", batch {batch}" if batch else ""
        yield from _group(f"Inference, {runtime}{at}, ms", _medians(rows))


def _medians(rows: Iterable[_Row]) -> Iterator[tuple[str, float]]:
    for row in rows:
        spread = Spread.of(row.samples)
        if spread is not None:
            yield row.variant, spread.median


def _group(
    title: str, lengths: Iterable[tuple[str, float]], text: Callable[[float], str] | None = None
) -> Iterator[tuple[str, _Bars]]:
    bars = [(name, length, (text or milliseconds)(length)) for name, length in lengths]
    if bars:
        yield title, bars

"""The table of the blocks of a plan."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from repl_fx.display.columns import add_numbers, add_row, add_words, new_table
from repl_fx.display.numbers import count
from repl_fx.planning.report import BlockReport


def blocks_table(report: Sequence[BlockReport]) -> Table:
    """The fate of each block, numbered as `--blocks` takes them, and the reason."""
    table = new_table("Blocks")
    add_numbers(table, "#")
    add_words(table, "block", "status")
    add_numbers(table, "parameters\nbefore", "parameters\nafter")
    add_words(table, "how, or why not")
    for number, row in enumerate(report, start=1):
        before, after = count(row.parameters_before), count(row.parameters_after)
        add_row(table, str(number), row.block, row.status, before, after, row.how)
    return table

"""The table of the blocks of a plan."""

from __future__ import annotations

from collections.abc import Sequence

from repl_fx.display.columns import Table, numbers, words
from repl_fx.display.numbers import count
from repl_fx.rewriting.report import BlockReport


def blocks_table(report: Sequence[BlockReport]) -> Table:
    """The fate of each block, numbered as `--blocks` takes them, and the reason."""
    sizes = numbers("parameters\nbefore", "parameters\nafter")
    rows = [
        (str(number), row.block, row.status, count(row.parameters_before), count(row.parameters_after), row.how)
        for number, row in enumerate(report, start=1)
    ]
    return Table("Blocks", (*numbers("#"), *words("block", "status"), *sizes, *words("how, or why not")), rows)

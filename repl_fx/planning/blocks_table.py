"""The table of the blocks of a plan."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from repl_fx.display.columns import add_numbers, add_row, add_words, new_table
from repl_fx.display.numbers import count
from repl_fx.plan import Plan, Replacement
from repl_fx.planning.report import BlockReport


def blocks_table(report: Sequence[BlockReport], plan: Plan) -> Table:
    """The fate of each block, numbered as `--blocks` takes them, and the reason."""
    table = new_table("Blocks")
    add_numbers(table, "#")
    add_words(table, "block", "status")
    add_numbers(table, "parameters\nbefore", "parameters\nafter")
    add_words(table, "how, or why not")
    replacements = {replacement.block: replacement for replacement in plan.replacements}
    for number, row in enumerate(report, start=1):
        replacement = replacements.get(row.block)
        before, after = count(row.parameters_before), count(row.parameters_after)
        add_row(table, str(number), row.block, row.status, before, after, how(row, replacement))
    return table


def how(row: BlockReport, replacement: Replacement | None) -> str:
    """The surrogate of a block, the blocks it is made from and why not another, or the reason why the block stays."""
    if replacement is not None:
        made_from = f", from {' and '.join(replacement.neighbours)}" if replacement.neighbours else ""
        made = f"{replacement.surrogate}{made_from}"
        return f"{made}; {replacement.why}" if replacement.why else made
    return row.reason or ""

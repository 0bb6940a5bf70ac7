"""`repl-fx diff`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from repl_fx.cli import common
from repl_fx.cli.completion import complete_plan
from repl_fx.cli.flags import Flags
from repl_fx.cli.group import FAILED

_HELP = "A plan.json, or a directory that transform wrote."


@common.command(Flags)
def diff_command(
    terminal: common.Terminal,
    flags: Flags,
    one: Annotated[Path, common.argument("A", _HELP, complete_plan)],
    other: Annotated[Path, common.argument("B", _HELP, complete_plan)],
) -> None:
    """Show how two plans or artifacts differ: in the blocks that go, options, parameters and weights.

    Exits with 0 where they are equal, and with 1 where they differ.

    Examples:
        repl-fx diff before after
        repl-fx diff out/plan.json other.json --json
    """
    from repl_fx.reporting.plan_difference import compare, difference_lines

    terminal.stage("compare")
    found = compare(one, other)
    terminal.show(*difference_lines(found))
    terminal.document(found.to_json())
    if found:
        raise typer.Exit(FAILED)

"""`repl-fx doctor`."""

from __future__ import annotations

from repl_fx.cli import common
from repl_fx.cli.flags import Flags
from repl_fx.cli.group import CheckFailed


@common.command(Flags)
def doctor_command(terminal: common.Terminal, flags: Flags) -> None:
    """Show versions, devices, and what is missing for each extra, with the command that installs it.

    Exits with 1 where a package that everything needs is missing, too old, or cannot be imported.

    Examples:
        repl-fx doctor
        repl-fx doctor --json
    """
    from repl_fx.environment.examination import examine
    from repl_fx.reporting.doctor_tables import doctor_lines

    found = examine()
    terminal.show(*doctor_lines(found))
    terminal.document(found.to_json())
    if found.problems:
        raise CheckFailed("; ".join(found.problems))
    terminal.show("repl-fx can run here")

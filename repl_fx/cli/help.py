"""Help in sections, with examples."""

from __future__ import annotations

import re
from typing import Any

from typer.core import TyperCommand

# Sections: the options of a command itself, and those that come last.
OPTIONS, OUTPUT = "Options", "Output"
# Up to the largest number of 64 bits, which nobody comes near, and which would be broken over two lines.
_RANGE = re.compile(r"  \[-?\d+<=x<=\d{19}\]")


def examples(*lines: str) -> str:
    """The examples below the help of a command, a line each, as they are typed."""
    # The first line keeps the others as they are.
    return "\n".join(["\b", "Examples:", *(f"  {line.strip()}" for line in lines)])


class Command(TyperCommand):
    """A command whose help lists the options of a section (`rich_help_panel`) together, its own ones first."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the sections."""
        write_options(self, ctx, formatter)


def write_options(command: Any, context: Any, formatter: Any) -> None:
    """Write the arguments and options of a command in sections."""
    sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], OPTIONS: []}
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            own = "Arguments" if parameter.param_type_name == "argument" else OPTIONS
            # Beside the other options that all commands have.
            own = OUTPUT if parameter.name == "help" and OUTPUT in sections else own
            sections.setdefault(getattr(parameter, "rich_help_panel", None) or own, []).append(
                (record[0], _RANGE.sub("", record[1]))
            )
    last = sections.pop(OUTPUT, [])
    write_sections({**sections, OUTPUT: last}, formatter)


def write_sections(sections: dict[str, list[tuple[str, str]]], formatter: Any) -> None:
    """Write tables of names and texts under their titles; none where a table is empty."""
    for title, records in sections.items():
        if records:
            with formatter.section(title):
                formatter.write_dl(records)

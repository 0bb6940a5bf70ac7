"""Options of a plan as flags and YAML files have them: text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from repl_fx.errors import BadInput
from repl_fx.plan import Plan


def parse_settings(items: Sequence[str]) -> dict[str, Any]:
    """Settings of a surrogate from `name=value`; a value is a number, true, false, none, or else text.

    Raises:
        BadInput: an item has another form, or a name comes twice.
    """
    settings: dict[str, Any] = {}
    for item in items:
        name, equals, text = item.partition("=")
        if not equals or not name:
            raise BadInput(f"--set {item!r} is no setting; write it like ratio=0.25")
        if name in settings:
            raise BadInput(f"--set {name} is given twice; give each setting once")
        settings[name] = _parse(text)
    return settings


def parse_list(text: str, option: str) -> list[str]:
    """The items of a list separated by commas, none of them empty.

    Raises:
        BadInput: an item is empty; names the option.
    """
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise BadInput(f"{option} {text!r} has an empty item; write it like 3,5")
    return items


def parse_sizes(text: str, option: str) -> tuple[int, ...]:
    """The batch sizes of a list separated by commas.

    Raises:
        BadInput: an item is no positive number; names the option.
    """
    items = parse_list(text, option)
    # A size of a tensor has 63 bits.
    if not all(item.isdecimal() and 0 < int(item) < 2**63 for item in items):
        raise BadInput(f"{option} {text!r} has an item that is no positive number of samples; write it like 1,2,5")
    return tuple(int(item) for item in items)


def parse_blocks(text: str) -> list[str | int]:
    """Blocks by name or number, in a list; numbers are rows of the table that `inspect` shows, whatever the names."""
    return [int(item) if item.isdecimal() else item for item in parse_list(text, "--blocks")]


def read_plan(file: Path) -> Plan:
    """The plan in a file.

    Raises:
        BadInput: the file cannot be read.
        PlanMismatch: its text is no plan.
    """
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as problem:
        raise BadInput(f"the plan {file} cannot be read: {problem}") from problem
    return Plan.from_json(text)


def _parse(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text

"""Options of a plan as flags and YAML files have them: text."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from repl_fx.errors import BadInput, PlanMismatch, one_line
from repl_fx.plan import Plan

_NOUNS = {"--set": "setting", "--arg": "argument"}


def parse_settings(items: Sequence[str], option: str = "--set", like: str = "ratio=0.25") -> dict[str, Any]:
    """Settings of a surrogate, or arguments of a builder, from `name=value`.

    A value is a number, true, false, none, a list or a mapping in JSON, or else text.

    Args:
        option: the flag that the items are of, for messages.
        like: an item that is right.

    Raises:
        BadInput: an item has another form, or a name comes twice.
    """
    settings: dict[str, Any] = {}
    for item in items:
        name, equals, text = item.partition("=")
        if not equals or not name:
            raise BadInput(f"{option} {item!r} is no {_NOUNS[option]}; write it like {like}")
        if name in settings:
            raise BadInput(f"{option} {name} is given twice; give each {_NOUNS[option]} once")
        settings[name] = _parse(text)
    return settings


def parse_list(text: str, option: str, like: str = "3,5") -> list[str]:
    """The items of a list separated by commas, none of them empty.

    Raises:
        BadInput: an item is empty; names the option, and what it is like.
    """
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise BadInput(f"{option} {text!r} has an empty item; write it like {like}")
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


def parse_budget(items: Sequence[str]) -> dict[str, float] | None:
    """Limits of costs from `cost=share`, several in one item separated by commas; None where there is no item.

    Raises:
        BadInput: an item has another form, or a cost comes twice.
    """
    limits: dict[str, float] = {}
    for item in (one for text in items for one in parse_list(text, "--budget", like="params=0.7")):
        name, _, share = item.partition("=")
        try:
            limit = float(share)
        except ValueError:
            raise BadInput(f"--budget {item!r} is no limit of a cost; write it like params=0.7") from None
        if name in limits:
            raise BadInput(f"--budget {name} is given twice; give each cost once")
        limits[name] = limit
    return limits or None


# Of the scores of `score_blocks`, those that cost most come first.
_KINDS = ("loss", "gradient", "influence")


def read_scores(file: Path) -> dict[str, float]:
    """The score of each block, by name: a JSON object, or the document of `score_blocks` or of `inspect --data --json`.

    Of the scores in a document those count that were asked for: the loss, else the gradient, else the influence.

    Raises:
        BadInput: the file cannot be read, or holds something else.
    """
    try:
        document = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as problem:
        raise BadInput(f"the scores {file} cannot be read: {one_line(problem)}") from problem
    try:
        if isinstance(document, dict) and isinstance(document.get("scores"), dict):
            document = document["scores"]
        if isinstance(document, dict) and isinstance(blocks := document.get("blocks"), list):
            kinds = (kind for kind in _KINDS if any(block.get(kind) is not None for block in blocks))
            kind = next(kinds, _KINDS[-1])
            # A block that could not be scored has none.
            return {block["block"]: block[kind] for block in blocks if block[kind] is not None}
        return dict(document.items())
    except (AttributeError, KeyError, TypeError):
        raise BadInput(
            f"{file} holds no scores; write a JSON object of a number for each block, or what score_blocks wrote"
        ) from None


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
    try:
        return Plan.from_json(text)
    except PlanMismatch as problem:
        raise PlanMismatch(f"{file}: {problem}") from problem


def _parse(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    readers: tuple[Callable[[str], Any], ...] = (json.loads,) if text[:1] in ("[", "{") else (int, float)
    for read in readers:
        with suppress(ValueError):
            return read(text)
    return text

"""Options of a plan that are written as text."""

from __future__ import annotations

from pathlib import Path

import pytest

from repl_fx.errors import BadInput, PlanMismatch
from repl_fx.plan import Plan
from repl_fx.planning.written_options import parse_blocks, parse_list, parse_settings, parse_sizes, read_plan


def test_settings() -> None:
    items = ["a=1", "b=0.5", "c=true", "d=None", "e=text", "f=1e-3", "g=x=y", "h="]
    assert parse_settings(items) == {
        **{"a": 1, "b": 0.5, "c": True, "d": None},
        **{"e": "text", "f": 0.001, "g": "x=y", "h": ""},
    }
    for bad in (["ratio"], ["=1"], ["a=1", "a=2"]):
        with pytest.raises(BadInput):
            parse_settings(bad)


def test_lists() -> None:
    assert parse_list(" 3, blocks.5", "--blocks") == ["3", "blocks.5"]
    with pytest.raises(BadInput, match="--blocks '3,,5' has an empty item; write it like 3,5"):
        parse_list("3,,5", "--blocks")


def test_blocks_are_numbers_or_names() -> None:
    assert parse_blocks("3, blocks.5") == [3, "blocks.5"]


def test_a_plan_is_read_and_what_is_none_is_a_line(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    with pytest.raises(BadInput, match=r"the plan .*plan\.json cannot be read"):
        read_plan(file)
    file.write_text("{}")
    with pytest.raises(PlanMismatch, match="not a plan"):
        read_plan(file)
    plan = Plan((), (), "", 3)
    file.write_text(plan.to_json())
    assert read_plan(file) == plan


def test_sizes() -> None:
    assert parse_sizes("1, 8", "--batch") == (1, 8)
    for bad in ("0", "1,x", "-1", f"{2**63}"):
        with pytest.raises(BadInput, match=f"--batch-sizes '{bad}' has an item that is no positive number"):
            parse_sizes(bad, "--batch-sizes")

"""Options of a plan that are written as text."""

from __future__ import annotations

from pathlib import Path

import pytest

from repl_fx.errors import BadInput, PlanMismatch
from repl_fx.plan import Plan
from repl_fx.planning.written_options import (
    parse_blocks,
    parse_budget,
    parse_list,
    parse_settings,
    parse_sizes,
    read_plan,
    read_scores,
)


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
    with pytest.raises(PlanMismatch, match=r"plan\.json: not a plan"):
        read_plan(file)
    plan = Plan((), (), "", 3)
    file.write_text(plan.to_json())
    assert read_plan(file) == plan


def test_sizes() -> None:
    assert parse_sizes("1, 8", "--batch") == (1, 8)
    for bad in ("0", "1,x", "-1", f"{2**63}"):
        with pytest.raises(BadInput, match=f"--batch-sizes '{bad}' has an item that is no positive number"):
            parse_sizes(bad, "--batch-sizes")


def test_limits_of_costs() -> None:
    assert parse_budget(["params=0.7", "flops=0.8, memory=.5"]) == {"params": 0.7, "flops": 0.8, "memory": 0.5}
    assert parse_budget([]) is None
    for bad, message in (
        (["params"], "--budget 'params' is no limit of a cost; write it like params=0.7"),
        (["params=x"], "--budget 'params=x' is no limit of a cost"),
        (["params=.5", "params=.6"], "--budget params is given twice; give each cost once"),
        (["params=.5,"], "has an empty item; write it like params=0.7"),
    ):
        with pytest.raises(BadInput, match=message):
            parse_budget(bad)


def test_scores_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "scores.json"
    file.write_text('{"a": 0.5, "b": 1}')
    assert read_scores(file) == {"a": 0.5, "b": 1}
    file.write_text('{"blocks": [{"block": "a", "influence": 0.25, "other": 1}]}')
    assert read_scores(file) == {"a": 0.25}
    blocks = (
        '{"blocks": [{"block": "a", "influence": 0.1, "loss": null}, {"block": "b", "influence": null, "loss": %s}]}'
    )
    file.write_text('{"spec": "model.py", "scores": ' + blocks % "null" + "}")
    assert read_scores(file) == {"a": 0.1}
    file.write_text(blocks % -0.5)
    assert read_scores(file) == {"b": -0.5}
    for text, message in (("[1]", "holds no scores"), ("{", "cannot be read"), ('{"blocks": [{}]}', "holds no scores")):
        file.write_text(text)
        with pytest.raises(BadInput, match=message):
            read_scores(file)

"""benchmarks/ecosystem.py: the quick habits hold, a failure in place is one, and the table has all rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import ecosystem
from benchmarks.ecosystem import WORKS, Cell, Row, in_a_line, trainers_table, tried
from benchmarks.habits.registry import Failed, Habit, habits
from benchmarks.habits.shapes import SHAPES
from benchmarks.habits.subject import FORMS, GRAPH, IN_PLACE, SOURCE, VIT, Subject
from benchmarks.habits.trainers import TRAINERS

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.slow
@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore")
def test_quick_habits_work_in_place_where_they_do_with_the_source(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("timm")
    pytest.importorskip("transformers")
    assert ecosystem.main(["--small", "--forms", SOURCE, IN_PLACE]) == 0
    printed = capsys.readouterr()
    quick = [habit for habit in habits() if habit.quick]
    assert sum(f"{habit.name}, " in printed.out for habit in quick) == len(quick)
    assert "fails" not in printed.err


def test_the_page_names_every_habit() -> None:
    rows = json.loads((DOCS / "ecosystem.json").read_text())["rows"]
    known = {habit.name: habit.networks for habit in habits()}
    page = (DOCS / "ecosystem.md").read_text()
    table, _, untried = page.partition("Not tried for this table yet: ")
    for row in rows:
        assert tuple(row["networks"]) == known.pop(row["habit"])
        assert f"| {row['habit']} |" in table
        assert set(row["cells"]) == set(FORMS)
        assert not row["cells"][IN_PLACE]["fails"] or row["cells"][SOURCE]["fails"]
    assert len(rows) > 20
    assert all(name in untried for name in known)


def test_the_page_has_each_trainer_with_each_surrogate() -> None:
    report = json.loads((DOCS / "ecosystem.json").read_text())
    table = (DOCS / "ecosystem.md").read_text().partition("## Trainers")[2]
    assert table == "\n".join(["", *trainers_table(report["trainers"])[2:]]) + table[table.index("\n\nMade by `") :]
    assert list(report["trainers"]) == [shape for shape in SHAPES if shape in report["trainers"]]
    for shape, row in report["trainers"].items():
        assert f"| {SHAPES[shape].model} | auto" in table
        assert list(row["cells"]) == list(TRAINERS)
        for cells in row["cells"].values():
            assert list(cells) == list(row["surrogates"])
            assert not [name for name, cell in cells.items() if cell["fails"]]


def test_a_cell_of_a_trainer_names_what_works_and_notes_why_not() -> None:
    works, noted = ({"says": WORKS, "remarks": remarks} for remarks in ([], ["so"]))
    fails = {"says": "because", "remarks": []}
    rows = {
        shape: {"surrogates": {"auto": "reuse", "blend": "blend"}, "cells": dict.fromkeys(TRAINERS, cells)}
        for shape, cells in (
            ("BERT", {"auto": works, "blend": works}),
            ("ViT", {"auto": noted, "blend": fails}),
            ("Llama", {"auto": fails, "blend": fails}),
        )
    }
    lines = trainers_table(rows)
    assert [line.split(" | ")[2] for line in lines if "auto (reuse), blend |" in line] == [
        "all",
        "auto (1), not blend (2)",
        "— (2)",
    ]
    assert lines[-2:] == ["1. so", "2. because"]


def _habit(fails: set[str], **options: object) -> Habit:
    def trial(subject: Subject) -> str:
        if subject.form in fails:
            raise Failed("no such thing")
        return "seen"

    return Habit("h", trial, (VIT,), **options)  # type: ignore[arg-type]


def test_what_works_with_the_source_and_fails_in_place_is_a_problem() -> None:
    for fails, problem in (({IN_PLACE}, "h: no such thing"), ({IN_PLACE, SOURCE}, ""), ({GRAPH}, "")):
        cells = tried(_habit(fails), FORMS, (VIT,))
        assert Row("h", (VIT,), cells).problem == problem
    assert tried(_habit(set()), (SOURCE,), (VIT,))[SOURCE].remarks == ("seen",)


def test_an_expected_failure_is_a_reason_and_a_problem_once_it_works() -> None:
    expected = {"expected": {IN_PLACE: "because"}}
    cell = tried(_habit({IN_PLACE}, **expected), (IN_PLACE,), (VIT,))[IN_PLACE]
    assert (cell.says, cell.fails) == ("because", False)
    cell = tried(_habit(set(), **expected), (IN_PLACE,), (VIT,))[IN_PLACE]
    assert cell.fails
    assert "though" in cell.says


def test_a_package_that_is_missing_is_named() -> None:
    cell = tried(_habit(set(), needs=("no_such_package",)), (SOURCE,), (VIT,))[SOURCE]
    assert cell.says.startswith("needs no_such_package: pip install")
    assert not cell.fails
    assert Cell(WORKS).says == "works"


def test_a_reason_that_all_networks_have_is_said_once() -> None:
    assert in_a_line({"a": "x", "b": "x"}, ("a", "b")) == "x"
    assert in_a_line({"a": "x"}, ("a", "b")) == "a: x"
    assert in_a_line({"a": "x", "b": "y", "c": "x"}, ("a", "b", "c")) == "a, c: x; b: y"

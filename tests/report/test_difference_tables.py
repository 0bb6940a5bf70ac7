"""The lines of a difference."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from repl_fx.report.difference_tables import difference_lines
from repl_fx.report.model_graph.comparing import BlockDifference, ChangedFact, PlansDifference, WeightsDifference

EQUAL = PlansDifference("a", "b", (), (), (), 1, (100, 100), WeightsDifference(9, (), (), ()))


def text(found: PlansDifference) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=80, markup=False)
    for line in difference_lines(found):
        console.print(line)
    return [" ".join(line.split()) for line in file.getvalue().splitlines()]


def test_equal_plans_are_one_line() -> None:
    assert text(EQUAL) == ["a and b are equal: 1 block is the same"]


def test_each_difference_has_its_line() -> None:
    block = BlockDifference(
        "blocks.[1]", (ChangedFact("status", "kept", "replaced"), ChangedFact("surrogate", None, "slim"))
    )
    weights = WeightsDifference(9, ("w", "x", "y", "z"), ("only",), ())
    found = replace(
        EQUAL,
        model=(ChangedFact("class", "Net", "Other"),),
        options=(ChangedFact("seed", 0, 1),),
        blocks=(block,),
        alike=2,
        parameters=(100, 50),
        weights=weights,
    )
    lines = text(found)
    assert lines[:4] == ["- a", "+ b", "model: class: Net -> Other", "options: seed: 0 -> 1"]
    assert lines[-5:] == [
        "blocks.[1] status kept replaced",
        "surrogate slim",
        "2 other blocks are the same",
        "parameters: 100 -> 50 (-50.0 %)",
        "weights: 9 equal; 4 different (w, x, y, …); 1 on the - side alone (only)",
    ]


def test_a_plan_alone_has_no_weights() -> None:
    found = replace(EQUAL, options=(ChangedFact("seed", 0, 1),), parameters=(None, 100), weights=None)
    assert text(found) == ["- a", "+ b", "options: seed: 0 -> 1"]

"""A plan as JSON text, and texts that are no plan."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from repl_fx.errors import PlanMismatch
from repl_fx.plan import Plan, Refusal, Replacement

PLAN = Plan(
    (Replacement("b.1", "b", "b.0", "b.2", "blend", {"per": "tensor"}),),
    (Refusal("b.3", "b", "it is the last of its repeat", "add_3"),),
    "of a graph",
    seed=7,
    parts=("b",),
)


def test_a_plan_comes_back_from_its_text() -> None:
    assert Plan.from_json(PLAN.to_json()) == PLAN


def test_a_plan_is_printed_a_line_a_block() -> None:
    assert str(PLAN) == "b.1 -> blend between b.0 and b.2\nb.3 stays: it is the last of its repeat"
    assert str(Plan((), (), "")) == "nothing to do"


def test_a_replacement_that_is_made_from_its_block_alone_names_no_others() -> None:
    alone = Plan((Replacement("b.0", "b", "", "", "narrow", {"ratio": 0.5}),), (), "")
    assert str(alone) == "b.0 -> narrow" and Plan.from_json(alone.to_json()) == alone
    assert alone.replacements[0].neighbours == () and PLAN.replacements[0].neighbours == ("b.0", "b.2")


def test_a_plan_for_a_budget_says_what_it_expects() -> None:
    plan = replace(PLAN, expected={"params": 0.6874, "latency": 0.75}, timed_on="cpu")
    assert str(plan).splitlines()[-1] == (
        "expected, of the original: params 0.6874, latency 0.75; latency was measured on cpu"
    )
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.without_surrogates().expected == {}


def test_a_plan_from_before_budgets_is_read() -> None:
    data = json.loads(PLAN.to_json())
    del data["expected"], data["timed_on"]
    assert Plan.from_json(json.dumps(data)) == PLAN


def _gone(data: dict[str, Any]) -> None:
    del data["schema"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_gone, "not a plan: KeyError"),
        (lambda data: data.update(schema=9), "the plan has schema 9; this version reads 1"),
        (lambda data: data.update(seed="x"), r"Expected `int`, got `str` - at `\$.seed`"),
        (lambda data: data.update(seed=2**63), r"not a plan: .*`\$.seed`"),
        (lambda data: data.update(parts=[]), r"not a plan: .*`\$.parts`"),
        (lambda data: data.update(surplus=1), "unknown field surplus"),
        (lambda data: data["replacements"][0].update(colour=1), r"unknown field replacements\[0\].colour"),
        (lambda data: data["refusals"][0].pop("reason"), "missing required field `reason`"),
    ],
)
def test_a_text_that_is_no_plan_is_refused(edit: Callable[[dict[str, Any]], Any], message: str) -> None:
    data = json.loads(PLAN.to_json())
    edit(data)
    with pytest.raises(PlanMismatch, match=message):
        Plan.from_json(json.dumps(data))

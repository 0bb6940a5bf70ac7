"""Which surrogate a block gets where some have no place in the model's own tree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.plan import Plan, Refusal, Replacement
from repl_fx.rewriting.in_place.assembling import InPlace
from repl_fx.rewriting.settling import Choices, settle_places
from tests.nets import MlpBlock, RawNet

PLAN = Plan(tuple(Replacement(block, "r", "0", "9", "first") for block in ("1", "3", "5")), (), "")


def _choices(replaced: Replacement) -> Iterator[Replacement]:
    keys = ("first", "second", "third")
    return (replace(replaced, surrogate=key, why="") for key in keys if key != replaced.surrogate)


def _settled(without: dict[str, set[str]], closed: set[str] = frozenset(), required: bool = False) -> Plan:  # type: ignore[assignment]
    """The plan where some surrogates of some blocks have no place; blocks that have none for any are `closed`."""

    def put(plan: Plan) -> InPlace:
        refused = [r for r in plan.replacements if r.surrogate in without.get(r.block, ()) or r.block in closed]
        refusals = tuple(Refusal(r.block, "r", f"no {r.surrogate}") for r in refused)
        return InPlace(None, refusals, open=frozenset(r.block for r in refused if r.block not in closed))

    def settle(plan: Plan, choices: Choices) -> Plan:
        # What stands third does not train.
        firsts = {
            r.block: next((o for o in (r, *choices(r)) if o.surrogate != "third"), None) for r in plan.replacements
        }
        stay = tuple(Refusal(block, "r", "third fails") for block, first in firsts.items() if first is None)
        return replace(plan, replacements=tuple(filter(None, firsts.values())), refusals=(*plan.refusals, *stay))

    return settle_places(PLAN, _choices, settle, put, required=required)


def test_a_plan_whose_surrogates_have_places_is_as_it_was() -> None:
    assert _settled({}) is PLAN


def test_the_next_choice_is_taken_and_says_why() -> None:
    plan = _settled({"3": {"first"}})
    assert [r.surrogate for r in plan.replacements] == ["first", "second", "first"]
    assert [r.why for r in plan.replacements] == ["", "first has no place: no first", ""]


@pytest.mark.parametrize("closed", [set(), {"3"}])
def test_the_graph_is_the_way_where_no_choice_has_a_place(closed: set[str]) -> None:
    # With the surrogates that come first, also for a block that could have another.
    assert _settled({"1": {"first"}, "3": {"first", "second"}}, closed) is PLAN


def test_blocks_without_a_place_stay_where_places_are_required() -> None:
    plan = _settled({"1": {"first"}, "3": {"first", "second"}}, {"5"}, required=True)
    assert [(r.block, r.surrogate) for r in plan.replacements] == [("1", "second")]
    assert {r.block: r.reason for r in plan.refusals} == {
        "5": "its surrogate has no place in the model's tree: no first",
        "3": "third fails",
    }


@pytest.mark.slow
def test_auto_takes_a_surrogate_that_has_a_place() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    result = repl_fx.transform(model, (torch.randn(2, 5, 16),))
    (row,) = (row for row in result.report if row.status == "replaced")
    assert row.surrogate == "bottleneck"
    reason = "it mixes by the attention map of layers.0.self_attn, which keeps it to itself"
    assert row.reason == f"reuse has no place: {reason}"
    assert isinstance(result.model, nn.TransformerEncoder)
    assert Plan.from_json(result.plan.to_json()) == result.plan


class _Mixed(nn.Module):
    """Blocks that are modules, and blocks that are none."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.raw = nn.Sequential(*(MlpBlock(8) for _ in range(3))), RawNet()

    def forward(self, x: Tensor) -> Tensor:
        return self.raw(self.blocks(x))  # type: ignore[no-any-return]


def test_places_can_be_required() -> None:
    x = torch.randn(4, 8)
    anywhere = repl_fx.transform(_Mixed(), (x,))
    assert len(anywhere.plan.replacements) == 2
    assert anywhere.model is anywhere.module
    result = repl_fx.transform(_Mixed(), (x,), in_place=True)
    assert [r.block for r in result.plan.replacements] == ["blocks.1"]
    assert isinstance(result.model, _Mixed)
    assert "its surrogate has no place in the model's tree: it is no call of a single module" in str(result.plan)
    with pytest.raises(repl_fx.NothingToReplace, match="its surrogate has no place in the model's tree"):
        repl_fx.transform(RawNet(), (x,), in_place=True)
    with pytest.raises(repl_fx.BadInput, match="in_place needs the model in place, which is refused: "):
        repl_fx.transform(_Mixed(), (x,), in_place=True, plan=anywhere.plan)

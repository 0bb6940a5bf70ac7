"""Plans under a budget: the best there is, what it expects is what comes out, and lines where there is none."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.costs import timed
from repl_fx.errors import BadInput, NothingToReplace, UnknownBlock
from repl_fx.plan import Plan
from repl_fx.planning import knapsack
from repl_fx.planning.budgets import Budget, NoPlan, budget_among, budget_lines, budget_shares, reached
from repl_fx.planning.replacement_costs import ReplacementCosts
from repl_fx.rewriting.result import TransformResult
from repl_fx.running.timing import Share
from repl_fx.surrogates.bottleneck import Bottleneck
from repl_fx.surrogates.linear import Linear
from tests.captures import kept_in_a_run
from tests.nets import ConvNet, MlpBlock, MlpNet, TokenNet, tokens
from tests.stages import Stages, images
from tests.surrogates.nets import Halving

DEPTH = 7


def net() -> TokenNet:
    torch.manual_seed(0)
    return TokenNet(depth=DEPTH, width=8)


def x() -> Tensor:
    return torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))


def gone(result: TransformResult) -> list[str]:
    return [replacement.block for replacement in result.plan.replacements]


def left(result: TransformResult) -> dict[str, Any]:
    return reached(result, *result.costs())


@pytest.mark.slow
@pytest.mark.parametrize("surrogate", ["auto", "identity", "blend"])
def test_what_is_expected_is_reached(surrogate: str) -> None:
    result = repl_fx.transform(net(), (x(),), budget={"params": 0.8}, surrogate=surrogate, check=False)
    assert result.plan.expected == left(result)
    assert set(result.plan.expected) == {"params", "flops", "memory"}
    assert 0.5 < result.plan.expected["params"] <= 0.8


@pytest.mark.slow
def test_a_network_of_similar_repeats() -> None:
    result = repl_fx.transform(Stages(3, 4, 3), (images(),), budget={"flops": 0.85, "memory": 0.96}, check=False)
    assert result.plan.expected == left(result)
    assert result.plan.expected["flops"] <= 0.85 and result.plan.expected["memory"] <= 0.96
    assert result.plan.replacements


@pytest.mark.slow
def test_the_nearest_plan_is_told_by_what_it_leaves() -> None:
    # Each block alone would leave less in a graph; together they are in place.
    with pytest.raises(NoPlan, match=r"the nearest is flops 0\.831, memory 0\.958, with 2 blocks .*memory=0\.958"):
        repl_fx.transform(Stages(3, 4, 3), (images(),), budget={"flops": 0.85, "memory": 0.95}, check=False)


@pytest.mark.slow
def test_the_plan_is_the_best_of_all() -> None:
    scores = dict(zip((f"blocks.{i}" for i in range(DEPTH)), (9, 3.0, 0.5, 0.25, 1.5, 0.125, 9), strict=True))
    budget = {"params": 0.8, "memory": 0.85}
    result = repl_fx.transform(net(), (x(),), budget=budget, scores=scores, surrogate="bottleneck", check=False)
    inner = [f"blocks.{i}" for i in range(1, DEPTH - 1)]
    found: dict[tuple[str, ...], float] = {}
    for number in (1, 2, 3):
        for some in combinations(inner, number):
            places = sorted(int(name[-1]) for name in some)
            if any(b - a == 1 for a, b in pairwise(places)):
                continue
            # Blocks are alike, so their number says what is left.
            if number >= len(gone(result)):
                found[some] = sum(scores[name] for name in some)
    assert tuple(gone(result)) == min(found, key=lambda some: found[some])
    one_less = 1 - (1 - result.plan.expected["params"]) * (len(gone(result)) - 1) / len(gone(result))
    assert one_less > 0.8


@pytest.mark.slow
def test_blocks_of_equal_worth_go_evenly_and_the_middle_first() -> None:
    assert gone(repl_fx.transform(net(), (x(),), budget={"params": 0.9}, surrogate="identity", check=False)) == [
        "blocks.3"
    ]
    two = repl_fx.transform(net(), (x(),), budget={"params": 0.75}, surrogate="identity", check=False)
    assert gone(two) == ["blocks.2", "blocks.5"]


def test_a_surrogate_without_neighbours_stands_in_for_blocks_in_a_row() -> None:
    result = repl_fx.transform(net(), (x(),), budget={"params": 0.45}, surrogate="identity", check=False)
    assert gone(result) == [f"blocks.{i}" for i in (1, 3, 4, 5)]
    assert {r.before for r in result.plan.replacements} <= {f"blocks.{i}" for i in range(DEPTH)} - set(gone(result))
    assert result.plan.expected == left(result)


def test_one_map_of_linear_stands_for_a_stretch() -> None:
    result = repl_fx.transform(net(), (x(),), budget={"params": 0.45}, surrogate="linear", check=False)
    made = {replacement.block: replacement.surrogate for replacement in result.plan.replacements}
    # Five blocks by one map save enough; four by two maps do not.
    assert made == {**{f"blocks.{i}": "identity" for i in (1, 2, 3, 4)}, "blocks.5": "linear"}
    assert result.plan.expected == left(result) and result.plan.expected["params"] <= 0.45


@pytest.mark.slow
def test_blocks_that_change_sizes_go_by_linear_where_scores_know_them() -> None:
    pictures = torch.randn(2, 8, 9, 9)
    torch.manual_seed(0)
    model = Halving()
    whole = repl_fx.transform(model, (pictures,), budget={"params": 0.5}, surrogate="linear", check=False)
    assert gone(whole) == ["blocks.1", "blocks.2", "blocks.3"] and whole.plan.expected == left(whole)
    # One costs more, as a stretch, than the same blocks saved alone.
    assert [one.surrogate for one in whole.plan.replacements] == ["identity", "identity", "linear"]
    scores = {"blocks.1": 1.0, "blocks.2": 3.0, "blocks.3": 2.0}
    scored = repl_fx.transform(
        model, (pictures,), budget={"params": 0.9}, scores=scores, surrogate="linear", check=False
    )
    assert gone(scored) == ["blocks.1"] and scored.plan.expected == left(scored)
    del scores["blocks.1"]
    other = repl_fx.transform(
        model, (pictures,), budget={"params": 0.9}, scores=scores, surrogate="linear", check=False
    )
    assert gone(other) == ["blocks.3"]
    refusals = {refusal.block: refusal.reason for refusal in other.plan.refusals}
    assert refusals["blocks.1"] == "it changes the size of its value, and scores have no number for it"
    # Other surrogates have no use for such blocks.
    with pytest.raises(BadInput, match="with 1 blocks replaced of 1 that may go"):
        repl_fx.transform(model, (pictures,), budget={"params": 0.1}, surrogate="identity", check=False)


@pytest.mark.slow
def test_no_plan_is_a_line_with_the_nearest_that_can_be() -> None:
    with pytest.raises(BadInput) as caught:
        repl_fx.transform(net(), (x(),), budget={"params": 0.3}, surrogate="bottleneck", check=False)
    line = str(caught.value)
    assert line.startswith("no plan has params at or below 0.3 of the original: the least is 0.")
    assert "with 3 blocks replaced of 5 that may go; give --budget params=0." in line
    least = float(line.rpartition("params=")[2].partition(",")[0])
    result = repl_fx.transform(net(), (x(),), budget={"params": least}, surrogate="bottleneck", check=False)
    assert least - 0.001 < result.plan.expected["params"] <= least


@pytest.mark.slow
def test_no_plan_under_several_limits() -> None:
    with pytest.raises(
        BadInput, match=r"params at or below 0\.9 and flops at or below 0\.1 of the original: the nearest"
    ):
        repl_fx.transform(net(), (x(),), budget={"params": 0.9, "flops": 0.1}, surrogate="identity", check=False)
    # A surrogate of all of the computation saves none of it, and another budget would not help.
    with pytest.raises(BadInput, match=r"the least is 1, with 0 blocks replaced of 5 that may go; give an"):
        repl_fx.transform(net(), (x(),), budget={"flops": 0.9}, surrogate="blend", check=False)


@pytest.mark.slow
def test_make_plan_takes_the_shapes_of_the_capture() -> None:
    gm = repl_fx.capture(net(), (x(),))
    plan = repl_fx.make_plan(gm, repl_fx.find_repeats(gm), budget={"flops": 0.8}, surrogate="identity")
    result = repl_fx.transform(net(), (x(),), budget={"flops": 0.8}, surrogate="identity", check=False)
    assert plan == result.plan
    assert repl_fx.Plan.from_json(plan.to_json()) == plan
    again = repl_fx.transform(net(), (x(),), plan=plan)
    assert left(again) == plan.expected


@pytest.mark.slow
def test_blocks_that_cannot_be_replaced_are_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    build = Bottleneck.build

    def choosy(self: Any, site: Any, match: Any) -> Any:
        if site.block.name == "blocks.3":
            raise IndexError("not this one")
        return build(self, site, match)

    monkeypatch.setattr(Bottleneck, "build", choosy)
    monkeypatch.setattr(Bottleneck, "__module__", "others")
    result = repl_fx.transform(net(), (x(),), budget={"params": 0.9}, surrogate="bottleneck")
    assert "blocks.3" not in gone(result) and result.plan.expected["params"] <= 0.9
    (refusal,) = [refusal for refusal in result.plan.refusals if refusal.block == "blocks.3"]
    assert "not this one" in refusal.reason
    assert result.plan.expected == left(result)


SCORES = dict(zip((f"blocks.{i}" for i in range(DEPTH)), (9, 3.0, 0.5, 4, 1.5, 2, 9), strict=True))


def ways(result: TransformResult) -> dict[str, tuple[str, float | None]]:
    return {one.block[-1]: (one.surrogate, one.settings.get("ratio")) for one in result.plan.replacements}


def of_trained(budget: float) -> TransformResult:
    result = repl_fx.transform(
        net(), (x(),), budget={"params": budget}, scores=SCORES, surrogate="trained", check=False
    )
    assert result.plan.expected == left(result) and result.plan.expected["params"] <= budget
    return result


# Where nothing is patched, tests share what comes out.
shared_of_trained = cache(of_trained)


@pytest.mark.slow
def test_below_what_narrow_reaches_the_blocks_worth_least_go_whole_and_others_are_narrow() -> None:
    half, quarter, whole = ("narrow", 0.5), ("narrow", 0.25), ("linear", None)
    # All narrow leaves more.
    assert ways(shared_of_trained(0.65)) == {"1": half, "2": whole, "3": half, "4": whole, "5": quarter}
    # The ends of the repeat may keep some units, and never go whole.
    assert ways(shared_of_trained(0.63)) == {"1": half, "2": whole, "3": half, "4": whole, "5": quarter, "6": half}
    # One map for two blocks, as both go by it; none for a narrow one beside a map.
    stretch = {"1": quarter, "2": whole, "3": half, "4": ("identity", None), "5": whole}
    assert ways(shared_of_trained(0.55)) == stretch
    assert ways(shared_of_trained(0.5)) == {**stretch, "0": half, "1": half, "6": half}


@pytest.mark.slow
def test_all_blocks_of_a_repeat_keep_some_units_and_need_no_others() -> None:
    result = repl_fx.transform(net(), (x(),), budget={"params": 0.75}, surrogate="narrow", check=False)
    assert gone(result) == [f"blocks.{i}" for i in range(DEPTH)] and not result.plan.refusals
    assert {(one.before, one.after) for one in result.plan.replacements} == {("", "")}
    assert result.plan.expected == left(result)


def test_a_narrow_block_is_a_neighbour_of_a_map() -> None:
    plan = shared_of_trained(0.5).plan
    around = {one.block[-1]: tuple(name[-1] for name in one.neighbours) for one in plan.replacements}
    assert around == {"0": (), "1": (), "2": ("1", "3"), "3": (), "4": ("3", "6"), "5": ("3", "6"), "6": ()}


@pytest.mark.slow
def test_an_end_without_a_score_stays_and_another_block_is_missed() -> None:
    inner = {block: score for block, score in SCORES.items() if block[-1] not in "06"}
    options: dict[str, Any] = {"budget": {"params": 0.8}, "surrogate": "narrow", "check": False}
    plan = repl_fx.transform(net(), (x(),), scores=inner, **options).plan
    assert {one.block for one in plan.replacements} <= set(inner)
    assert [str(one) for one in plan.refusals] == [
        f"blocks.{i} stays: scores have no number for it" for i in (0, DEPTH - 1)
    ]
    del inner["blocks.3"]
    with pytest.raises(BadInput, match=r"scores have no number for blocks\.3; give one"):
        repl_fx.transform(net(), (x(),), scores=inner, **options)


@pytest.mark.slow
def test_a_block_that_cannot_go_by_one_of_several_surrogates_goes_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    build = Linear.build

    def choosy(self: Any, site: Any, match: Any) -> Any:
        if site.block.name == "blocks.2":
            raise IndexError("not this one")
        return build(self, site, match)

    monkeypatch.setattr(Linear, "build", choosy)
    monkeypatch.setattr(Linear, "__module__", "others")
    result = of_trained(0.63)
    assert ways(result)["2"][0] == "narrow" and ("linear", None) in ways(result).values()
    # A block that goes is none that was refused.
    assert not result.plan.refusals or {one.block for one in result.plan.refusals}.isdisjoint(gone(result))


@pytest.mark.slow
def test_too_many_plans_to_choose_from_among_several_surrogates_are_those_of_the_next_form(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert {one for one, _ in ways(shared_of_trained(0.63)).values()} == {"linear", "narrow"}
    monkeypatch.setattr(knapsack, "LARGEST", 12)
    assert {one for one, _ in ways(of_trained(0.63)).values()} <= {"linear", "identity"}
    monkeypatch.setattr(knapsack, "LARGEST", 8)
    with pytest.raises(NoPlan, match="plans to choose from under a budget of params"):
        of_trained(0.63)


def test_savings_that_do_not_add_up_are_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = ReplacementCosts.left

    def more(self: ReplacementCosts, replacements: Sequence[Any]) -> Mapping[str, float]:
        return {name: share + 0.02 * len(replacements) for name, share in counted(self, replacements).items()}

    monkeypatch.setattr(ReplacementCosts, "left", more)
    result = repl_fx.transform(net(), (x(),), budget={"params": 0.87}, surrogate="identity", check=False)
    assert len(gone(result)) == 2 and result.plan.expected["params"] <= 0.87


def test_a_plan_that_is_above_the_limit_by_next_to_nothing_is_given_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried, counted = [], ReplacementCosts.left

    def left(costs: ReplacementCosts, replacements: Sequence[Any]) -> dict[str, float]:
        tried.append([one.block for one in replacements])
        assert len(tried) < 10
        return counted(costs, replacements) | ({"params": 0.9 + 1e-9} if len(replacements) == 1 else {})

    monkeypatch.setattr(ReplacementCosts, "left", left)
    result = repl_fx.transform(net(), (x(),), budget={"params": 0.9})
    assert len(tried[0]) == 1 and gone(result) == tried[-1] and len(tried[-1]) == 2


class Branching(nn.Module):
    """Blocks in a module, behind a choice that no graph can have."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*(MlpBlock(8) for _ in range(5)))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        if (total := x.sum().item()) > 1e9:
            return x * total
        return self.head(self.body(x))  # type: ignore[no-any-return]


@pytest.mark.slow
def test_a_model_in_parts() -> None:
    torch.manual_seed(0)
    result = repl_fx.transform(Branching(), (torch.randn(4, 8),), budget={"params": 0.7}, check=False)
    assert not result.captured_parts.whole
    assert all(block.startswith("body.") for block in gone(result))
    assert result.plan.expected == left(result) and result.plan.expected["params"] <= 0.7


@pytest.mark.slow
def test_latency_is_measured_and_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    # How well a share is known is not asked here.
    monkeypatch.setattr(timed, "_SECONDS", 0.1)
    monkeypatch.setattr(timed, "_PAIRED", (0.3, 2.0))
    result = repl_fx.transform(net(), (x(),), budget={"latency": 0.95}, surrogate="identity", check=False)
    assert result.plan.timed_on == "cpu" and 0 < result.plan.expected["latency"] <= 0.95
    found = left(result)
    assert found.keys() == result.plan.expected.keys()
    share = found["latency"]
    assert 0 < share.lower <= share.value <= share.upper < 2 and share.pairs >= 20
    row = budget_shares({"latency": 0.95}, result.plan, found)["latency"]
    assert (row["reached"] is None) == (not share.decides(0.95)) and row["value"] == share.value


SHARES: dict[str, tuple[float | Share, float | None, list[str]]] = {
    "reached": (Share(0.7, 0.69, 0.71, 50), 0.7, ["latency is 0.7000 of the original, 0.6900 to 0.7100 in 50 pairs"]),
    "missed": (
        Share(0.9, 0.89, 0.91, 50),
        0.9,
        ["latency is 0.9", "warning: latency is 0.9000 of the original, ab"],
    ),
    "too near": (Share(0.79, 0.77, 0.81, 50), None, ["warning: latency is 0.79.* does not tell whether the budget of"]),
    "too wide": (Share(0.4, 0.2, 0.6, 50), None, ["warning: latency is 0.4.* of 0.8 is reached; measure on a quieter"]),
    "counted": (0.85, 0.85, ["warning: latency is 0.8500 of the original, above the budget of 0.8"]),
}


@pytest.mark.parametrize("name", SHARES)
def test_a_budget_is_called_reached_where_the_spread_tells(name: str) -> None:
    share, shown, lines = SHARES[name]
    shares = budget_shares({"latency": 0.8}, Plan((), (), "", 0, expected={"latency": 0.75}), {"latency": share})
    assert (shares["latency"]["reached"], shares["latency"]["limit"]) == (shown, 0.8)
    said = budget_lines(shares, "cpu")
    assert len(said) == len(lines) and all(re.match(f"{one}", line) for one, line in zip(lines, said, strict=True))


@pytest.mark.slow
def test_a_memory_budget_is_that_of_the_model_in_place() -> None:
    torch.manual_seed(0)
    pictures = torch.zeros(2, 3, 8, 8)
    result = repl_fx.transform(ConvNet(depth=5), (pictures,), surrogate="slim", budget={"memory": 0.93}, check=False)
    assert result.in_place.model is not None
    before, after = (kept_in_a_run(model, pictures) for model in (result.captured_parts.source, result.model))
    costs = result.costs()
    assert [one.kept_bytes for one in costs] == [before, after]
    # The graph writes into the stream, and keeps less.
    assert kept_in_a_run(result.module, pictures) < after
    assert result.plan.expected["memory"] == (costs[1].activation_bytes or 0) / before <= 0.93


class Looped(nn.Module):
    """Four blocks that are gone through three times."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(MlpBlock(8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for block in (*self.blocks, *self.blocks, *self.blocks):
            x = block(x)
        return x


@pytest.mark.parametrize("surrogate", ["narrow", "trained"])
def test_shared_blocks_stay_shared(surrogate: str) -> None:
    torch.manual_seed(0)
    model = Looped()
    options: Any = {"surrogate": surrogate, "check": False}
    try:
        result = repl_fx.transform(model, (torch.randn(4, 8),), budget={"flops": 0.7}, **options)
    except NothingToReplace as problem:
        assert surrogate == "narrow" and "is read elsewhere too" in str(problem)
        return
    assert {one.surrogate for one in result.plan.replacements} <= {"linear", "identity"}
    left = sum(p.numel() for block in model.blocks for p in block.parameters())
    assert result.plan.expected["params"] <= (left + 2 * 8 * 8) / left


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, r"budget is \{\}; give shares of the original by cost \(params, flops, memory, latency\)"),
        ({"size": 0.5}, "budget has no cost 'size'; the costs are params, flops, memory, latency"),
        ({"params": 1.0}, "budget params is 1.0; give a share of the original above 0 and below 1"),
        ({"params": float("nan")}, "budget params is nan"),
        ({"params": "0.5"}, "budget params is '0.5'"),
        (0.5, "budget is 0.5; give shares"),
    ],
)
def test_budgets_that_are_none(limits: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Budget(limits)


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    """Those of single precision come out as plain ones, which a file can hold."""
    model, x = MlpNet(6, 8), torch.randn(2, 5, 8)
    names = [f"blocks.{i}" for i in range(6)]
    scores = {name: np.float32(0.1 * i) for i, name in enumerate(names)}
    options: Any = {"surrogate": "identity", "budget": {"params": np.float32(0.7)}, "scores": scores}
    result = repl_fx.transform(model, (x,), **options)
    assert {one.block for one in result.plan.replacements} == {"blocks.1", "blocks.2"}
    repl_fx.save(result, tmp_path / "out")
    assert type(Budget(options["budget"]).limits["params"]) is float


def test_scores_that_are_none() -> None:
    with pytest.raises(BadInput, match="the score of a is nan; give a finite number"):
        Budget({"params": 0.5}, {"a": float("nan")})
    with pytest.raises(BadInput, match=r"scores are \[1\]; give a number for each block"):
        Budget({"params": 0.5}, [1])  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="give a budget too"):
        budget_among({"scores": {}})
    with pytest.raises(BadInput, match=r"scores have no number for blocks\.2 and 3 more; give one for each block"):
        repl_fx.transform(net(), (x(),), budget={"params": 0.9}, scores={"blocks.1": 1.0})
    with pytest.raises(UnknownBlock):
        repl_fx.transform(net(), (x(),), budget={"params": 0.9}, scores={"layer.1": 1.0})


def test_a_budget_says_which_blocks_go_alone() -> None:
    with pytest.raises(BadInput, match="a budget says which blocks go; leave out every and blocks, or the budget"):
        repl_fx.transform(net(), (tokens(),), budget={"params": 0.9}, every=3, blocks=[2])
    assert budget_among({"every": 2}) is None

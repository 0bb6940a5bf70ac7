"""Where repeats come from: a pattern, a function, a plan; and that a plan finds them again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

import repl_fx
from repl_fx import Plan, Repeat
from repl_fx.tracing.parts.finders import without_patterns
from tests.nets import MlpBlock

X = torch.randn(2, 4)


class Net(nn.Module):
    def __init__(self, depth: int = 6) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(MlpBlock(4) for _ in range(depth)))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x))  # type: ignore[no-any-return]


class Branching(nn.Module):
    """A body that is one graph, in a model that is none."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Net()

    def forward(self, x: Tensor) -> Tensor:
        total = x.sum().item()
        return self.body(x) if total > -1e9 else x * total


def replaced(plan: Plan) -> list[str]:
    return [replacement.block for replacement in plan.replacements]


@pytest.mark.slow
def test_a_pattern_names_the_blocks_of_a_repeat() -> None:
    result = repl_fx.transform(Net(), (X,), blocks=["layers.[0-4]"])
    assert replaced(result.plan) == ["layers.1", "layers.3"]
    assert [row.block for row in result.report] == [f"layers.{i}" for i in range(5)]
    assert [repeat.blocks for repeat in result.plan.repeats] == [tuple(f"layers.{i}" for i in range(5))]
    assert result.in_place.model is not None
    chosen = repl_fx.transform(Net(), (X,), blocks=["layers.[2-5]", 2, "layers.4"], surrogate="identity").plan
    assert replaced(chosen) == ["layers.3", "layers.4"]
    budget = repl_fx.transform(Net(), (X,), blocks=["layers.[0-2]"], budget={"params": 0.9}).plan
    assert replaced(budget) == ["layers.1"]


def test_without_a_pattern_a_plan_holds_no_repeats() -> None:
    assert repl_fx.transform(Net(), (X,)).plan.repeats == ()


@pytest.mark.parametrize("blocks", [["layers.[0-4]"], ["body.layers.*"]])
def test_a_plan_over_own_repeats_makes_the_same_model_of_a_fresh_one(blocks: list[str], tmp_path: Path) -> None:
    make: Callable[[], nn.Module] = Branching if blocks[0].startswith("body") else Net
    result = repl_fx.transform(make(), (X,), blocks=blocks)
    again = repl_fx.transform(make(), (X,), plan=Plan.from_json(result.plan.to_json()))
    assert again.plan == result.plan and again.report == result.report
    again.module.load_state_dict(result.module.state_dict())
    assert torch.equal(again.module.eval()(X), result.module.eval()(X))
    repl_fx.save(result, tmp_path / "out")
    for graph in (True, False):
        loaded = repl_fx.load(tmp_path / "out", make(), graph=graph)
        assert torch.equal(loaded(X), result.module(X))


def test_blocks_of_two_layers_are_replaced_and_loaded(tmp_path: Path) -> None:
    model = Net()
    graph = repl_fx.capture(model, (X,))
    pairs = repl_fx.repeat_of(graph, [[f"layers.{i}", f"layers.{i + 1}"] for i in (0, 2, 4)])
    plan = repl_fx.make_plan(graph, [pairs])
    assert replaced(plan) == ["layers.2-3"]
    result = repl_fx.transform(model, (X,), plan=Plan.from_json(plan.to_json()))
    repl_fx.save(result, tmp_path / "out")
    assert torch.equal(repl_fx.load(tmp_path / "out", Net())(X), result.module.eval()(X))


def test_found_and_own_repeats_stand_side_by_side() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = Net(4), Net(4)
            self.one.head = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x).sigmoid())  # type: ignore[no-any-return]

    model = Two()
    graph = repl_fx.capture(model, (X,))
    found = repl_fx.find_repeats(graph)
    own = repl_fx.repeat_of(graph, "one.layers.[0-2]", name="own")
    plan = repl_fx.make_plan(graph, [own, found[-1]])
    assert replaced(plan) == ["one.layers.1", "two.layers.1", *(["two.layers.3"] if len(found[-1]) > 4 else [])]
    assert repl_fx.transform(Two(), (X,), plan=plan).plan == plan


def test_a_plan_whose_repeat_does_not_hold_is_refused() -> None:
    plan = repl_fx.transform(Net(), (X,), blocks=["layers.*"]).plan
    with pytest.raises(repl_fx.PlanMismatch, match="the plan was made for another model than this Net"):
        repl_fx.transform(Net(3), (X,), plan=plan)
    free = Plan(plan.replacements, (), "", repeats=plan.repeats)
    with pytest.raises(repl_fx.PlanMismatch, match=r"a repeat of the plan does not hold: no module 'layers.3'"):
        repl_fx.transform(Net(3), (X,), plan=free)


def test_what_is_no_pattern_of_blocks_is_refused() -> None:
    with pytest.raises(repl_fx.BadInput, match=r"'net.*' matches no module"):
        repl_fx.transform(Net(), (X,), blocks=["net.*"])
    with pytest.raises(repl_fx.UnknownBlock, match=r"no block 'layers.\*'"):
        graph = repl_fx.capture(Net(), (X,))
        repl_fx.make_plan(graph, repl_fx.find_repeats(graph), blocks=["layers.*"])
    assert without_patterns(["a.*", 3]) == [3]
    assert without_patterns(["a.*"]) is without_patterns(None) is None


def ends(gm: fx.GraphModule) -> list[Repeat]:
    return [repl_fx.repeat_of(gm, "layers.[0-2]"), repl_fx.repeat_of(gm, "layers.[3-5]", name="last")]


class _Apart(nn.Module):
    """Blocks each of which is a graph, in a model that is none."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MlpBlock(4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if x.sum().item() > -1e9:
                x = layer(x)
        return x * float(x.mean().item())


def test_a_pattern_of_blocks_in_graphs_of_their_own_is_refused_with_the_reason() -> None:
    with pytest.raises(repl_fx.BadInput, match=r"'layers.\*' matches no two modules of one graph, .* in parts"):
        repl_fx.transform(_Apart(), (X,), blocks=["layers.*"])


@pytest.mark.slow
def test_a_finder_says_what_repeats() -> None:
    plan = repl_fx.transform(Net(), (X,), finder=ends).plan
    assert replaced(plan) == ["layers.1", "layers.4"] and [r.name for r in plan.repeats] == ["layers", "last"]
    # What the plan holds is enough.
    assert repl_fx.transform(Net(), (X,), plan=Plan.from_json(plan.to_json())).plan == plan
    found = repl_fx.transform(Net(), (X,), finder=repl_fx.find_repeats).plan
    assert found == repl_fx.transform(Net(), (X,)).plan


def nothing(gm: fx.GraphModule) -> Sequence[Repeat]:
    return []


def broken(gm: fx.GraphModule) -> Sequence[Repeat]:
    raise KeyError("block")


def misled(gm: fx.GraphModule) -> Sequence[Repeat]:
    return [repl_fx.repeat_of(gm, "head.*")]


def wordy(gm: fx.GraphModule) -> Sequence[Repeat]:
    return ["layers"]  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("finder", "error", "message"),
    [
        (nothing, repl_fx.NothingToReplace, "no repeated blocks were found"),
        (broken, repl_fx.BadInput, "the finder broken fails: KeyError: 'block'; mend it"),
        (misled, repl_fx.BadInput, "'head.*' matches no module"),
        (wordy, repl_fx.BadInput, "each of find_repeats or repeat_of, and this is one of a str"),
        ("shop", repl_fx.BadInput, "unknown finder 'shop'; no installed package offers one"),
        (3, repl_fx.BadInput, "finder is an int; give a function of a graph, or the name of one"),
    ],
)
def test_what_a_finder_gets_wrong_is_said(
    finder: str | Callable[[fx.GraphModule], Sequence[Repeat]], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        repl_fx.transform(Net(), (X,), finder=finder)


def test_a_pattern_and_a_finder_contradict() -> None:
    with pytest.raises(repl_fx.BadInput, match=r"'layers.*' names the blocks of a repeat, and so does the finder"):
        repl_fx.transform(Net(), (X,), finder=ends, blocks=["layers.*"])


def test_own_blocks_are_scored() -> None:
    graph = repl_fx.capture(Net(), (X,))
    own = repl_fx.repeat_of(graph, [[f"layers.{i}", f"layers.{i + 1}"] for i in (0, 2, 4)])
    scores = repl_fx.score_blocks(graph, [torch.randn(8, 4)], repeats=[own])
    assert list(scores.of("influence")) == ["layers.0-1", "layers.2-3", "layers.4-5"]
    chosen = repl_fx.make_plan(graph, [own], budget={"params": 0.9}, scores=scores.of("influence"))
    assert replaced(chosen) == ["layers.2-3"]

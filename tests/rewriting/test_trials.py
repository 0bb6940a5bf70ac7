"""Trials of a plan: a block whose surrogate fails gets the next choice, or stays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import repl_fx
from repl_fx.rewriting.check_training import TrainingCheck
from repl_fx.rewriting.trials import Trials
from repl_fx.surrogates import Builder, Site
from repl_fx.surrogates.blend import Blend
from repl_fx.surrogates.bottleneck import Bottleneck, BottleneckConfig
from repl_fx.surrogates.shared import surrogate as registry
from tests.planning.perceptron import Perceptron
from tests.surrogates.nets import Halving


def test_auto_goes_on_to_its_next_choice_for_the_culprit_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    build = Bottleneck.build

    def broken(self: Any, site: Builder, match: Any) -> tuple[fx.Node, ...]:
        if site.block.name == "3":
            raise IndexError("tuple index out of range")
        return build(self, site, match)

    monkeypatch.setattr(Bottleneck, "build", broken)
    model = nn.Sequential(*(Perceptron() for _ in range(7)))
    x = torch.randn(4, 16)
    result = repl_fx.transform(model, (x,))
    assert [r.surrogate for r in result.plan.replacements] == ["bottleneck", "blend", "bottleneck"]
    assert not result.plan.refusals
    # An explicit choice has no other; the rest goes on.
    result = repl_fx.transform(model, (x,), surrogate="bottleneck")
    assert [r.block for r in result.plan.replacements] == ["1", "5"]
    (refusal,) = result.plan.refusals
    assert refusal.reason == "bottleneck cannot be built here: IndexError: tuple index out of range"
    # The plan is the whole story: it makes the same graph again.
    again = repl_fx.transform(model, (x,), plan=result.plan)
    assert str(again.graph_module.graph) == str(result.graph_module.graph)
    for name, value in again.graph_module.state_dict().items():
        torch.testing.assert_close(value, result.graph_module.state_dict()[name], rtol=0, atol=0)


def test_a_next_choice_that_one_block_refuses_stands_in_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Any, site: Builder, match: Any) -> Any:
        raise IndexError("tuple index out of range")

    match = Blend.match

    def choosy(self: Any, site: Site) -> Any:
        return site.refusal("a block that is no like the others") if site.block.name == "5" else match(self, site)

    monkeypatch.setattr(Bottleneck, "build", fails)
    monkeypatch.setattr(Blend, "match", choosy)
    model = nn.Sequential(*(Perceptron() for _ in range(7)))
    result = repl_fx.transform(model, (torch.randn(4, 16),))
    assert {r.block: r.surrogate for r in result.plan.replacements if r.block != "5"} == {"1": "blend", "3": "blend"}
    assert all(r.surrogate not in ("blend", "bottleneck") for r in result.plan.replacements if r.block == "5")


def test_a_block_that_a_map_behind_no_longer_stands_for_gets_a_map_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    run = TrainingCheck.run
    tried = []

    def fails_first(self: TrainingCheck, *given: Any) -> Any:
        tried.append(given)
        return ("a failure", frozenset()) if len(tried) == 1 else run(self, *given)

    monkeypatch.setattr(TrainingCheck, "run", fails_first)
    result = repl_fx.transform(
        Halving(), (torch.randn(2, 8, 9, 9),), surrogate="linear", blocks=["blocks.1", "blocks.2"]
    )
    assert [one.surrogate for one in result.plan.replacements] == ["linear", "linear"] and not result.plan.refusals


def test_plans_that_differ_in_settings_alone_are_tried_each(monkeypatch: pytest.MonkeyPatch) -> None:
    run = TrainingCheck.run
    tried = []

    def counted(self: TrainingCheck, *given: Any) -> Any:
        tried.append(given)
        return run(self, *given)

    model, x = nn.Sequential(*(Perceptron() for _ in range(5))), torch.randn(4, 16)
    result = repl_fx.transform(model, (x,), surrogate="bottleneck", settings={"ratio": 0.25}, blocks=["1"])
    trials = Trials(result.found, 0)
    monkeypatch.setattr(TrainingCheck, "run", counted)
    (one,) = result.plan.replacements
    for ratio in (0.25, 0.25, 0.5):
        trials.require(replace(result.plan, replacements=(replace(one, settings={"ratio": ratio}),)))
    assert len(tried) == 2


def test_a_builder_of_repl_fx_that_fails_is_a_defect_and_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any) -> Any:
        raise AssertionError("a builder that is not right")

    model, x = nn.Sequential(*(Perceptron() for _ in range(5))), torch.randn(4, 16)
    monkeypatch.setattr(Builder, "synthesise", fails)
    for surrogate in ("auto", "bottleneck"):
        with pytest.raises(AssertionError, match="a builder that is not right"):
            repl_fx.transform(model, (x,), surrogate=surrogate)


def test_a_builder_of_others_that_fails_refuses_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    class Others(Bottleneck):
        def build(self, site: Builder, match: Any) -> tuple[fx.Node, ...]:
            raise AssertionError("no such block")

    monkeypatch.setitem(registry._REGISTRY, "others", (Others, BottleneckConfig))
    monkeypatch.setattr(Others, "key", "others")
    model, x = nn.Sequential(*(Perceptron() for _ in range(5))), torch.randn(4, 16)
    with pytest.raises(repl_fx.NothingToReplace, match="others cannot be built here: AssertionError: no such block"):
        repl_fx.transform(model, (x,), surrogate="others")
    with pytest.raises(AssertionError, match="no such block"):
        repl_fx.transform(model, (x,), surrogate="others", check=False)


class Particular(nn.GELU):
    """An activation that takes the channels of its block alone, along `axis`, and what a probe gives it."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[self.axis] not in (1, 9, 16):
            raise ValueError(f"made for 16 channels, not {x.shape[self.axis]}")
        return super().forward(x)


class Residual(nn.Module):
    """x + leave(act(enter(x))), on pictures or on tokens."""

    def __init__(self, tokens: bool) -> None:
        super().__init__()
        self.enter, self.leave = ((nn.Linear(16, 16) if tokens else nn.Conv2d(16, 16, 3, padding=1)) for _ in range(2))
        self.act = Particular(-1 if tokens else 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.leave(self.act(self.enter(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("surrogate", "tokens"), [("bottleneck", False), ("bottleneck", True), ("slim", False)])
def test_an_activation_of_the_model_that_takes_no_other_width_is_refused_with_its_reason(
    surrogate: str, tokens: bool
) -> None:
    model = nn.Sequential(*(Residual(tokens) for _ in range(4)))
    x = torch.randn(2, 5, 16) if tokens else torch.randn(2, 16, 6, 6)
    with pytest.raises(repl_fx.NothingToReplace, match=f"{surrogate} cannot be built here: ValueError: made for 16"):
        repl_fx.transform(model, (x,), surrogate=surrogate)
    # Another kind of surrogate keeps the width.
    assert [r.surrogate for r in repl_fx.transform(model, (x,)).plan.replacements] == ["blend"]

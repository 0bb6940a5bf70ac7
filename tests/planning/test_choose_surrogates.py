"""What stands in for a block, and the reasons why a block stays."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.plan import Replacement
from repl_fx.planning.choose_surrogates import next_choices
from repl_fx.planning.policies import policy_of
from repl_fx.tracing.parts.part_repeats import find_in_parts
from tests.nets import ConvNet, TokenNet, images, tokens


def test_a_surrogate_that_does_not_fit_is_refused_with_the_reason() -> None:
    with pytest.raises(repl_fx.NothingToReplace, match="it has no spine"):
        repl_fx.transform(ConvNet(plain=True), (images(),), surrogate="bottleneck")
    plan = repl_fx.transform(ConvNet(plain=True), (images(),), surrogate="auto").plan
    assert {r.surrogate for r in plan.replacements} == {"blend"}


@pytest.mark.parametrize("returned", [True, False])
def test_inner_values_used_outside_keep_a_block_unless_the_surrogate_keeps_them(returned: bool) -> None:
    class Tapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.ModuleList(nn.Linear(8, 16) for _ in range(4))
            self.second = nn.ModuleList(nn.Linear(16, 8) for _ in range(4))

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            taps = []
            for first, second in zip(self.first, self.second, strict=True):
                inner = first(x).relu()
                taps.append(inner)
                x = x + second(inner)
            return (x, *taps) if returned else (x, *(tap * 2 for tap in taps))

    x = torch.randn(2, 8)
    if returned:
        # What is only handed out, such as an attention map, is None where its block is gone.
        gm = repl_fx.transform(Tapped(), (x,), surrogate="bottleneck").graph_module
        assert [value is None for value in gm(x)] == [False, False, True, False, False]
        return
    with pytest.raises(repl_fx.NothingToReplace, match=r"its inner value relu.* is used outside the block"):
        repl_fx.transform(Tapped(), (x,), surrogate="bottleneck")
    result = repl_fx.transform(Tapped(), (x,), surrogate="blend")
    assert len(result.graph_module(x)) == 5


def test_only_choices_that_stand_alone_are_left_without_neighbours() -> None:
    result = repl_fx.transform(TokenNet(depth=4), (tokens(),), surrogate="auto")
    found, replaced = find_in_parts(result.captured_parts), result.plan.replacements[0]

    def choices(key: str, one: Replacement) -> list[str]:
        return [choice.surrogate for choice in next_choices(found, policy_of(key), one)]

    alone = replace(replaced, before="", after="")
    assert choices("auto", replaced) and choices("auto", alone) == []
    assert "narrow" in choices("trained", alone) and "linear" not in choices("trained", alone)
    assert {"narrow", "linear"} <= {*choices("trained", replaced)}

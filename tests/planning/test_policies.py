"""Policies choose surrogates: `auto` for each block, `trained` under a budget for all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.errors import BadInput
from repl_fx.planning.policies import policy_of
from tests.nets import ConvNet, TokenNet, images, tokens
from tests.surrogates.nets import NETS


@pytest.mark.slow
def test_auto_takes_it_for_sequences_of_patches() -> None:
    chosen = []
    for model, x in (NETS["tokens"](), NETS["batch norm"](), (TokenNet(depth=3), tokens())):
        plan = repl_fx.transform(model, (x,), surrogate="auto").plan
        chosen.append(plan.replacements[0].surrogate)
    assert chosen == ["coarse", "slim", "reuse"]


def test_auto_hands_its_settings_on() -> None:
    settings: dict[str, Any] = {"width": 3, "heads": 2, "weights": "own", "train_neighbours": False}
    for model, x, key, own in (
        (ConvNet(depth=3), images(), "slim", "width"),
        (TokenNet(depth=3), tokens(), "reuse", "heads"),
    ):
        (replacement,) = repl_fx.transform(model, (x,), settings=settings).plan.replacements
        assert replacement.surrogate == key
        for name in (own, "weights", "train_neighbours"):
            assert replacement.settings[name] == settings[name]


def test_auto_itself_chooses_once_more_in_a_plan_that_names_it() -> None:
    x = images()
    chosen = repl_fx.transform(ConvNet(depth=3), (x,)).plan
    (replacement,) = chosen.replacements
    named = type(chosen)(
        (type(replacement)("blocks.1", "blocks", "blocks.0", "blocks.2", "auto"),), (), chosen.fingerprint
    )
    torch.manual_seed(0)
    model = ConvNet(depth=3)
    by_name = repl_fx.transform(model, (x,), plan=named).graph_module
    by_choice = repl_fx.transform(model, (x,), plan=chosen).graph_module
    assert list(by_name.state_dict()) == list(by_choice.state_dict())
    assert torch.equal(by_name(x), by_choice(x))


class Mixed(nn.Module):
    """A residual block of one layer: no channels between two."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layer(x)
        return out


def test_blocks_without_hidden_units_get_a_map() -> None:
    net = nn.Sequential(*(Mixed() for _ in range(4)))
    (mapped,) = repl_fx.transform(net, (tokens(),), surrogate="trained", blocks=[2]).plan.replacements
    (narrow,) = repl_fx.transform(TokenNet(depth=4), (tokens(),), surrogate="trained", blocks=[2]).plan.replacements
    assert (mapped.surrogate, narrow.surrogate) == ("linear", "narrow")


@pytest.mark.slow
def test_a_budget_that_asks_for_more_than_units_takes_some_whole_blocks() -> None:
    net, x = TokenNet(depth=5), tokens()
    found = []
    for budget in (0.9, 0.65, 0.54, 0.29):
        plan = repl_fx.transform(net, (x,), surrogate="trained", budget={"params": budget}, check=False).plan
        assert plan.expected["params"] <= budget
        found.append({one.surrogate for one in plan.replacements})
    # A stretch has a map for its last block, and the others are taken out.
    assert found == [{"narrow"}, {"narrow"}, *2 * [{"narrow", "linear", "identity"}]]
    # The ends keep an eighth of their units there, which maps alone would leave whole.
    assert {one.settings["ratio"] for one in plan.replacements if one.surrogate == "narrow"} == {0.125}
    with pytest.raises(BadInput, match=r"no plan has params at or below 0\.01 of the original: the least is 0\.287"):
        repl_fx.transform(net, (x,), surrogate="trained", budget={"params": 0.01}, check=False)


def test_a_network_without_hidden_units_gets_maps_under_a_budget() -> None:
    net = nn.Sequential(*(Mixed() for _ in range(6)), nn.Linear(16, 64))
    result = repl_fx.transform(net, (tokens(),), surrogate="trained", budget={"flops": 0.95}, check=False)
    assert {one.surrogate for one in result.plan.replacements} <= {"linear", "identity"}
    torch.manual_seed(0)
    repl_fx.fit(result, [torch.randn(8, 6, 16) for _ in range(4)])


def test_the_setting_of_trained_is_that_of_narrow() -> None:
    forms = [[one.candidates[0].key for one in form] for form in policy_of("trained", {"ratio": 0.5}).forms()]
    assert forms == [["narrow"], ["narrow", "linear"], ["linear"]]
    with pytest.raises(BadInput, match="narrow: ratio is 2"):
        policy_of("trained", {"ratio": 2})

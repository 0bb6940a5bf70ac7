"""`trained`: blocks of a trained network with fewer hidden units, or a map where that is not enough."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.errors import BadInput
from repl_fx.surrogates.trained import Trained, TrainedConfig
from tests.captures import transformed
from tests.nets import TokenNet, tokens


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
    (mapped,) = transformed(net, (tokens(),), surrogate="trained", blocks=[2]).plan.replacements
    (narrow,) = transformed(TokenNet(depth=4), (tokens(),), surrogate="trained", blocks=[2]).plan.replacements
    assert (mapped.surrogate, narrow.surrogate) == ("linear", "narrow")


@pytest.mark.slow
def test_a_budget_that_asks_for_more_than_units_takes_some_whole_blocks() -> None:
    net, x = TokenNet(depth=7), tokens()
    found = []
    for budget in (0.9, 0.65, 0.54, 0.21):
        plan = transformed(net, (x,), surrogate="trained", budget={"params": budget}, check=False).plan
        assert plan.expected["params"] <= budget
        found.append({one.surrogate for one in plan.replacements})
    # A stretch has a map for its last block, and the others are taken out.
    assert found == [{"narrow"}, {"narrow"}, *2 * [{"narrow", "linear", "identity"}]]
    # The ends keep an eighth of their units there, which maps alone would leave whole.
    assert {one.settings["ratio"] for one in plan.replacements if one.surrogate == "narrow"} == {0.125}
    with pytest.raises(BadInput, match=r"no plan has params at or below 0\.01 of the original: the least is 0\.207"):
        transformed(net, (x,), surrogate="trained", budget={"params": 0.01}, check=False)


def test_a_network_without_hidden_units_gets_maps_under_a_budget() -> None:
    net = nn.Sequential(*(Mixed() for _ in range(6)), nn.Linear(16, 64))
    result = transformed(net, (tokens(),), surrogate="trained", budget={"flops": 0.95}, check=False)
    assert {one.surrogate for one in result.plan.replacements} <= {"linear", "identity"}
    torch.manual_seed(0)
    repl_fx.fit(result, [torch.randn(8, 6, 16) for _ in range(4)])


def test_its_setting_is_that_of_narrow() -> None:
    forms = [[one.key for one in form] for form in Trained(TrainedConfig(0.5)).under_budget()]
    assert forms == [["narrow"], ["narrow", "linear"], ["linear"]]
    with pytest.raises(BadInput, match="narrow: ratio is 2"):
        TrainedConfig(2)

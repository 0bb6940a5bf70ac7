"""Times of nodes and of graphs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.costs import timed
from repl_fx.costs.timed import latency_share, node_times
from repl_fx.errors import BadInput
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.tracing.parts.capture_parts import Part


class Net(nn.Module):
    def __init__(self, wide: int) -> None:
        super().__init__()
        self.thin, self.wide, self.norm = nn.Linear(4, 4), nn.Linear(4, wide), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(self.norm(self.thin(x)))  # type: ignore[no-any-return]


INPUTS = ExampleInputs((torch.ones(64, 4),))


def test_times_are_those_of_the_nodes_and_nothing_is_changed() -> None:
    gm = repl_fx.capture(Net(20_000).train(), INPUTS.args)
    before = {name: value.clone() for name, value in gm.state_dict().items()}
    state = torch.get_rng_state()
    times = node_times({"": Part("", gm, INPUTS)})[""]
    assert times.keys() == {node.name for node in gm.graph.nodes}
    assert times["wide"] > times["thin"] > 0
    assert gm.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in gm.state_dict().items())


def test_the_share_of_two_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timed, "_PAIRED", (0.3, 1.0))
    slow, fast = (Part("", repl_fx.capture(Net(wide), INPUTS.args), INPUTS) for wide in (50_000, 4))
    share = latency_share((slow,), (fast,))
    assert share.lower <= share.value <= share.upper < 0.7 and share.pairs >= 20
    assert latency_share((fast,), (slow, slow)).lower > 1.5


def test_what_cannot_be_timed_is_a_line() -> None:
    gm = repl_fx.capture(Net(4), INPUTS.args)
    with pytest.raises(BadInput, match="latency cannot be measured on device meta; leave latency out of the budget"):
        node_times({"": Part("", gm.to("meta"), INPUTS)})
    wrong = ExampleInputs((torch.ones(64, 5),))
    with pytest.raises(BadInput, match=r"latency cannot be measured: .*was captured as"):
        node_times({"": Part("", repl_fx.capture(Net(4), INPUTS.args), wrong)})

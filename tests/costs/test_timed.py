"""Times of nodes and of graphs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from repl_fx.costs.timed import Timed, latency_ratio, node_times
from repl_fx.errors import BadInput
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.tracing.parts.capture import Part
from tests.captures import captured_graph


class Net(nn.Module):
    def __init__(self, wide: int) -> None:
        super().__init__()
        self.thin, self.wide, self.norm = nn.Linear(4, 4), nn.Linear(4, wide), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(self.norm(self.thin(x)))  # type: ignore[no-any-return]


INPUTS = ExampleInputs((torch.ones(64, 4),))


def test_times_are_those_of_the_nodes_and_nothing_is_changed() -> None:
    gm = captured_graph(Net(20_000).train(), INPUTS.args)
    before = {name: value.clone() for name, value in gm.state_dict().items()}
    state = torch.get_rng_state()
    times = node_times({"": Timed(gm, INPUTS)}, rounds=5)[""]
    assert times.keys() == {node.name for node in gm.graph.nodes}
    assert times["wide"] > times["thin"] > 0
    assert gm.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in gm.state_dict().items())


def test_the_ratio_of_two_graphs() -> None:
    slow, fast = (Part("", captured_graph(Net(wide), INPUTS.args), INPUTS) for wide in (50_000, 4))
    assert latency_ratio((slow,), (fast,), rounds=5) < 0.7
    assert latency_ratio((fast,), (slow, slow), rounds=5) > 1.5


def test_what_cannot_be_timed_is_a_line() -> None:
    gm = captured_graph(Net(4), INPUTS.args)
    with pytest.raises(BadInput, match="latency cannot be measured on device meta; leave latency out of the budget"):
        node_times({"": Timed(gm.to("meta"), INPUTS)})
    wrong = ExampleInputs((torch.ones(64, 5),))
    with pytest.raises(BadInput, match=r"latency cannot be measured: .*was captured as"):
        node_times({"": Timed(captured_graph(Net(4), INPUTS.args), wrong)})

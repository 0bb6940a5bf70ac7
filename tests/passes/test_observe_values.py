"""Observers see every value of a node, as it was when it was computed, and the graph computes what it did."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from repl_fx.passes.driver import run_passes
from repl_fx.passes.observe_values import observe_values
from tests.captures import captured_graph


class Overwrites(nn.Module):
    """A sum that is written over."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = x + self.fc(x)
        return total.relu_()


def test_a_value_is_shown_before_it_is_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPL_FX_CHECK", "1")
    net, x = Overwrites().eval(), torch.randn(3, 4)
    gm = captured_graph(net, (x,))
    added = next(node for node in gm.graph.nodes if "add" in node.name)
    given = next(node for node in gm.graph.nodes if node.op == "placeholder")
    nodes = len(gm.graph.nodes)
    seen: dict[str, Tensor] = {}

    def note(name: str, value: Tensor) -> None:
        seen[name] = value.clone()

    pairs = [(added, partial(note, "sum")), (given, partial(note, "input")), (added, partial(note, "again"))]
    run = run_passes(gm, partial(observe_values, observers=pairs))
    assert run.results[0].changed == (added.name, given.name)
    assert torch.equal(run.graph_module(x), net(x)) and len(gm.graph.nodes) == nodes
    assert torch.equal(seen["sum"], x + net.fc(x)) and bool((seen["sum"] < 0).any())
    assert torch.equal(seen["input"], x) and torch.equal(seen["again"], seen["sum"])
    assert run.graph_module.get_parameter("fc.weight") is gm.get_parameter("fc.weight")


def test_without_observers_nothing_is_changed() -> None:
    gm = captured_graph(Overwrites(), (torch.randn(3, 4),))
    result = observe_values(gm, ())
    assert not result.modified and result.graph_module is not gm

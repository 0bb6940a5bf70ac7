"""A copy of a graph hands values of its nodes to functions."""

from __future__ import annotations

import torch
from torch import Tensor

from repl_fx.graph.recording import watched
from tests.captures import captured_graph
from tests.nets import MlpNet


def test_values_are_handed_out_and_nothing_changes() -> None:
    x = torch.randn(2, 4, 16)
    gm = captured_graph(MlpNet(), (x,))
    before = str(gm.graph)
    first, *_, last = (node for node in gm.graph.nodes if node.op != "output")
    given: list[Tensor] = []
    results: list[Tensor] = []
    copied = watched(gm, {first: given.append, last: results.append})
    made = copied(x)
    assert str(gm.graph) == before
    assert len(given) == len(results) == 1
    assert torch.equal(given[0], x)
    assert torch.equal(results[0], made) and torch.equal(made, gm(x))
    assert {id(p) for p in copied.parameters()} == {id(p) for p in gm.parameters()}

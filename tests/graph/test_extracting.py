"""Pieces of graphs as graphs of their own."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from repl_fx.graph.extracting import Extract
from repl_fx.tracing.capture import capture


class Net(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu().reshape(x.shape[1], x.shape[0]) * 2


def test_a_piece_computes_what_its_nodes_do_and_sizes_are_those_of_its_inputs() -> None:
    gm = capture(Net(), (torch.randn(3, 5),))
    relu, view, double = (next(n for n in gm.graph.nodes if word in n.name) for word in ("relu", "reshape", "mul"))
    read = [node for node in view.all_input_nodes if node is not relu]
    extract = Extract([relu, *read])
    assert read and all(extract.size(node) in ((relu, 0), (relu, 1)) for node in read)
    assert extract.size(relu) is None
    taken = extract.take(relu, "given")
    for node in (view, double):
        extract.copy(node)
    extract.graph.output(extract.value(double))
    # Sizes of the trace are no constants.
    x = torch.randn(2, 7)
    assert torch.equal(fx.GraphModule(nn.Module(), extract.graph)(x), x.reshape(7, 2) * 2)
    assert taken.target == "given" and taken.meta["val"] is relu.meta["val"]
    assert extract.made[double].meta == double.meta and extract.made[double].meta is not double.meta


def test_a_copy_may_call_another_target() -> None:
    graph = fx.Graph()
    added = graph.call_function(torch.add, (graph.placeholder("x"), 1))
    extract = Extract()
    extract.take(added.all_input_nodes[0], "x", (2,))
    extract.graph.output(extract.copy(added, torch.mul))
    module = fx.GraphModule(nn.Module(), extract.graph)
    assert module(torch.tensor(3)) == 3 and module() == 2

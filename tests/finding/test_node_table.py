"""A graph as tables: labels, arguments, parameters and value numbers of its nodes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from repl_fx.finding.find_repeats import find_repeats
from repl_fx.finding.node_table import NONE, node_table
from repl_fx.tracing.capture import capture
from tests.graphs import Graph, residual


class _Offsets(nn.Module):
    """Each layer takes a tensor that is made for it alone before the first one."""

    def __init__(self, same: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.same = same

    def forward(self, x: Tensor) -> Tensor:
        offsets = [torch.zeros(8) + (0 if self.same else i) for i in range(4)]
        for layer, offset in zip(self.layers, offsets, strict=True):
            x = torch.relu(layer(x) + offset)
        return x


@pytest.mark.parametrize(("same", "found"), [(True, [4]), (False, [])])
def test_values_computed_alike_from_constants_count_as_one(same: bool, found: list[int]) -> None:
    gm = capture(_Offsets(same), (torch.randn(2, 8),))
    assert [len(repeat) for repeat in find_repeats(gm) if not repeat.similar] == found


def test_rows_of_a_residual_network() -> None:
    table = node_table(residual(2, inner=1))
    # stem, 2 x (linear relu add), head
    assert [node.name for node in table.nodes] == [
        "layer_0",
        "layer_1",
        "relu",
        "add",
        "layer_2",
        "relu_1",
        "add_1",
        "layer_3",
    ]
    stem, linear, relu, add, *second, head = table.labels.tolist()
    assert stem == linear and second == [linear, relu, add] and len({linear, relu, add, head}) == 4
    assert table.arguments[0, 0] < NONE
    assert table.arguments[1:4].tolist() == [[0, NONE], [1, NONE], [0, 2]]
    assert table.sizes.tolist() == [72, 72, 0, 0, 72, 0, 0, 27]
    assert table.mixing.tolist() == [True, True, False, False, True, False, False, True]
    assert table.parameters[4] == ("layer_2.weight", "layer_2.bias") and table.index[table.nodes[5]] == 5


def test_parameters_of_norms_count_and_do_not_mix() -> None:
    graph = Graph()
    graph.root.add_module("norm", nn.LayerNorm(8))
    table = node_table(graph.done(graph.linear(graph.input(), reuse="norm")))
    assert table.sizes.tolist() == [16] and table.mixing.tolist() == [False]


def test_uses_of_a_value_are_rows_and_columns() -> None:
    rows, columns = node_table(residual(2, inner=1)).uses(3)
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == [(4, 0), (6, 0)]


def test_dropout_is_seen_through() -> None:
    graph = Graph()
    x = graph.linear(graph.input())
    dropped = graph.call(torch.clone, x)
    dropped.meta["passes_through"] = True
    table = node_table(graph.done(graph.linear(dropped)))
    assert [node.name for node in table.nodes] == ["layer_0", "layer_1"]
    assert table.arguments[1, 0] == 0 and table.feeders[1] == (dropped,)

"""Residual units: an addition, the value both its sides come from, and what lies between."""

from __future__ import annotations

import torch
from torch import fx

from repl_fx.finding.node_table import node_table
from repl_fx.finding.residual_units import Residual, residuals
from tests.graphs import Graph

ADD = torch.ops.aten.add.Tensor


def _units(graph: Graph, result: fx.Node) -> list[Residual]:
    return list(residuals(node_table(graph.done(result))))


def _main(graph: Graph, x: fx.Node) -> fx.Node:
    return graph.linear(graph.call(torch.relu, graph.linear(x)))


def test_shortcuts_that_are_the_fork_itself_or_a_projection() -> None:
    graph = Graph()
    x = graph.linear(graph.input())
    x = graph.call(ADD, x, _main(graph, x))
    main = _main(graph, x)
    x = graph.call(ADD, main, graph.linear(x))
    assert _units(graph, x) == [Residual(0, (1, 2, 3), (), 4), Residual(4, (5, 6, 7), (8,), 9)]


def test_a_unit_lists_its_main_path_first() -> None:
    assert Residual(4, (5, 6, 7), (8,), 9).members == (5, 6, 7, 9, 8)


def test_sides_of_equal_weight_have_no_main_path() -> None:
    graph = Graph()
    x = graph.linear(graph.input())
    assert _units(graph, graph.call(ADD, graph.linear(x), graph.linear(x))) == []


def test_a_path_that_others_read_too_is_no_unit() -> None:
    graph = Graph()
    x = graph.linear(graph.input())
    inner = graph.call(torch.relu, graph.linear(x))
    x = graph.call(ADD, x, graph.linear(inner))
    assert _units(graph, graph.call(torch.mul, x, inner)) == []

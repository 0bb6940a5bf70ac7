"""The bridge to networkx: reachability, paths and meeting points of small graphs that are built by hand."""

from __future__ import annotations

import torch
from torch import fx

from repl_fx.graph.bridge import digraph, digraph_with_writes, leading_to, meeting_point, on_paths, reached_from


def diamond() -> tuple[fx.Graph, dict[str, fx.Node]]:
    """Two paths from `a` to `d`, and `e` behind `b` alone."""
    graph = fx.Graph()
    a = graph.placeholder("a")
    b, c = (graph.call_function(torch.neg, (a,), name=name) for name in "bc")
    d = graph.call_function(torch.add, (b, c), name="d")
    e = graph.call_function(torch.neg, (b,), name="e")
    return graph, {node.name: node for node in (a, b, c, d, e)}


def test_reachability_goes_both_ways_and_counts_the_ends() -> None:
    graph, of = diamond()
    shape = digraph(graph.nodes)
    assert reached_from(shape, [of["b"]]) == {of["b"], of["d"], of["e"]}
    assert leading_to(shape, [of["d"]]) == {of["a"], of["b"], of["c"], of["d"]}
    assert on_paths(shape, of["b"], of["d"]) == {of["b"], of["d"]}


def test_nodes_that_are_not_in_the_graph_lead_nowhere() -> None:
    _, of = diamond()
    part = digraph([of["b"], of["e"]])
    assert reached_from(part, [of["a"]]) == set()
    assert on_paths(part, of["a"], of["e"]) == set()
    assert on_paths(part, of["e"], of["b"]) == set()


def test_paths_meet_where_all_sources_pass() -> None:
    graph, of = diamond()
    shape = digraph(graph.nodes)
    assert meeting_point(shape, [of["b"], of["c"]], of["d"]) is of["d"]
    assert meeting_point(shape, [of["a"], of["c"]], of["d"]) is of["d"]
    assert meeting_point(shape, [of["b"]], of["e"]) is of["b"]


def test_a_write_in_place_leads_to_all_that_reads_its_memory() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    made = graph.call_function(torch.ops.aten.mul.Tensor, (x, 2))
    part = graph.call_function(torch.ops.aten.select.int, (made, 0, 0))
    write = graph.call_function(torch.ops.aten.fill_.Scalar, (part, 1))
    output = graph.output(made)
    assert write not in leading_to(digraph(graph.nodes), [output])
    assert leading_to(digraph_with_writes(graph.nodes), [output]) == set(graph.nodes)

"""The bridge from fx to networkx: questions about a graph's shape are asked there, not answered by walks of our own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import networkx as nx
from torch import fx


def digraph(nodes: Iterable[fx.Node]) -> nx.DiGraph[fx.Node]:
    """The data-flow graph of some fx nodes: an edge from each value to each of its users among them.

    Args:
        nodes: in program order; networkx keeps that order, so its answers are deterministic.
    """
    graph: nx.DiGraph[fx.Node] = nx.DiGraph()
    graph.add_nodes_from(nodes)
    for node in list(graph):
        graph.add_edges_from((feeder, node) for feeder in node.all_input_nodes if feeder in graph)
    return graph


def on_paths(graph: nx.DiGraph[fx.Node], start: fx.Node, end: fx.Node) -> set[fx.Node]:
    """The nodes on any path from `start` to `end`, both included; empty when there is no path."""
    if start not in graph or end not in graph or not nx.has_path(graph, start, end):
        return set()
    # The stubs of networkx want a graph of plain objects here.
    plain: Any = graph
    return ({start} | nx.descendants(plain, start)) & ({end} | nx.ancestors(plain, end))


def meeting_point(graph: nx.DiGraph[fx.Node], sources: Iterable[fx.Node], end: fx.Node) -> fx.Node:
    """The first node that every path from every source to `end` passes: their nearest common post-dominator."""
    above = nx.immediate_dominators(graph.reverse(copy=False), end)

    def chain(node: fx.Node) -> list[fx.Node]:
        found = [node]
        while found[-1] is not end:
            found.append(above[found[-1]])
        return found

    common: list[fx.Node] | None = None
    for source in sources:
        steps = chain(source)
        common = steps if common is None else [node for node in common if node in set(steps)]
    return end if not common else common[0]

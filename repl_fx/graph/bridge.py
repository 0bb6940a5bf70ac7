"""The bridge from fx to networkx: questions about a graph's shape are asked there, not answered by walks of our own."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import networkx as nx
from torch import fx

from repl_fx.graph.captured import memory_of, writes_in_place
from repl_fx.graph.grouping import grouped


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


def digraph_with_writes(nodes: Iterable[fx.Node]) -> nx.DiGraph[fx.Node]:
    """The data-flow graph, with an edge from each write in place to each computed value of the same memory.

    A slice that is written into has no user besides the write, and the write may have none: `scores[:, 1:] = chunks`.
    """
    graph = digraph(nodes)
    writers = grouped((memory_of(node), node) for node in graph if writes_in_place(node))
    for node in list(graph) if writers else ():
        if node.op != "get_attr":
            graph.add_edges_from((writer, node) for writer in writers.get(memory_of(node), ()))
    return graph


def reached_from(graph: nx.DiGraph[fx.Node], sources: Iterable[fx.Node]) -> set[fx.Node]:
    """Those of the sources that are in the graph, and all nodes that depend on one of them."""
    return set(chain.from_iterable(nx.bfs_layers(graph, [node for node in sources if node in graph])))


def leading_to(graph: nx.DiGraph[fx.Node], ends: Iterable[fx.Node]) -> set[fx.Node]:
    """Those of the ends that are in the graph, and all nodes that one of them depends on."""
    return reached_from(graph.reverse(copy=False), ends)


def on_paths(graph: nx.DiGraph[fx.Node], start: fx.Node, end: fx.Node) -> set[fx.Node]:
    """The nodes on any path from `start` to `end`, both included; empty when there is no path."""
    return reached_from(graph, [start]) & leading_to(graph, [end])


def meeting_point(graph: nx.DiGraph[fx.Node], sources: Iterable[fx.Node], end: fx.Node) -> fx.Node:
    """The first node that every path from every source to `end` passes: their nearest common post-dominator."""
    # A node that feeds all sources is dominated, from the end, by the nodes they have in common.
    everything: Any = "feeds all sources"
    backwards = graph.reverse()
    backwards.add_edges_from((source, everything) for source in sources)
    common: fx.Node = nx.immediate_dominators(backwards, end)[everything]
    return common

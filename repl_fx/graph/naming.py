"""Names of nodes that depend on nothing but a graph's structure."""

from __future__ import annotations

from torch import fx

from repl_fx.graph.extracting import Extract


def named_alike(graph: fx.Graph) -> fx.Graph:
    """A copy of a graph whose nodes are named by their place and their operator.

    Graphs that do the same have the same code then, wherever in a model they come from.
    """
    copied, inputs = Extract(), 0
    for node in graph.nodes:
        if node.op == "placeholder":
            copied.take(node, f"input_{inputs}", node.args)
            inputs += 1
        else:
            copied.copy(node)
    return copied.graph

"""Names of nodes that depend on nothing but a graph's structure."""

from __future__ import annotations

from torch import fx


def named_alike(graph: fx.Graph) -> fx.Graph:
    """A copy of a graph whose nodes are named by their place and their operator.

    Graphs that do the same have the same code then, wherever in a model they come from.
    """
    copied = fx.Graph()
    known: dict[fx.Node, fx.Node] = {}
    inputs = 0
    for node in graph.nodes:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
        target = node.target
        if node.op == "placeholder":
            target = f"input_{inputs}"
            inputs += 1
        made = known[node] = copied.create_node(node.op, target, args, kwargs)
        made.meta = dict(node.meta)
    return copied

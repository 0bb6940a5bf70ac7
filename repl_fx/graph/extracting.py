"""A new graph of some nodes of another one, and names of nodes that depend on nothing but a graph's structure.

    graph     x, w, s = x.shape[0] -> linear(x, w) -> view(_, s) -> …
    extract   input_0, input_1 -> linear -> sym_size(input_0, 0) -> view

What is outside of them is handed in. Sizes of what is handed in are told by it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import fx

from repl_fx.graph.captured import dimension_called, is_tensor


class Extract:
    """A graph that is made of nodes of another one.

    Args:
        given: nodes of the other graph that are handed in; sizes that are those of tensors among them are told by them.

    Attributes:
        graph: the new graph.
        made: the nodes in it, by those that they stand for.
    """

    def __init__(self, given: Collection[fx.Node] = ()) -> None:
        self.graph = fx.Graph()
        self.made: dict[fx.Node, fx.Node] = {}
        self._given = given

    def take(self, node: fx.Node, name: str, default: tuple[Any, ...] = ()) -> fx.Node:
        """Add an argument for the value of a node."""
        return self._noted(node, self.graph.create_node("placeholder", name, default))

    def copy(self, node: fx.Node, target: Any = None) -> fx.Node:
        """Add a node that does what another one does, or calls another target on the same arguments."""
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.value)
        return self._noted(node, self.graph.create_node(node.op, target or node.target, args, kwargs))

    def size(self, node: fx.Node) -> tuple[fx.Node, int] | None:
        """The tensor that is handed in, and its dimension, whose size is the value of a node; None for other values."""
        value = node.meta.get("val")
        return dimension_called(str(value), filter(is_tensor, self._given)) if isinstance(value, torch.SymInt) else None

    def value(self, node: fx.Node) -> fx.Node:
        """The node of the new graph that has the value of a node: one that was added, or a size."""
        if node not in self.made:
            size = self.size(node)
            assert size is not None
            told = self.graph.call_function(torch.ops.aten.sym_size.int, (self.made[size[0]], size[1]))
            self._noted(node, told)
        return self.made[node]

    def _noted(self, node: fx.Node, made: fx.Node) -> fx.Node:
        made.meta = dict(node.meta)
        self.made[node] = made
        return made


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

"""A new graph of some nodes of another one, and names of nodes that depend on nothing but a graph's structure.

    graph     x, w, s = x.shape[0] -> linear(x, w) -> view(_, s) -> …
    extract   input_0, input_1 -> linear -> sym_size(input_0, 0) -> view

What is outside of them is handed in. Sizes of what is handed in are told by it.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import fx

from repl_fx._torch import QuotientForm
from repl_fx.graph.captured import dimension_called, is_tensor


class ToldSize(NamedTuple):
    """A size by that of a tensor: `(tensor.shape[dim] + plus) // over`."""

    tensor: fx.Node
    dim: int
    plus: int = 0
    over: int = 1


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

    def size(self, node: fx.Node) -> ToldSize | None:
        """The dimension of a tensor that is handed in which tells the value of a node; None for other values.

        Of sizes that are rounded one after the other, symbols know only what they come to: of a stream of
        `(x + 3) // 4` the windows are `(x + 27) // 28`, which is `(stream + 6) // 7`.
        """
        value = node.meta.get("val")
        if not isinstance(value, torch.SymInt):
            return None
        tensors = list(filter(is_tensor, self._given))
        if (same := dimension_called(str(value), tensors)) is not None:
            return ToldSize(*same)
        form = QuotientForm.of(value)
        told = (ToldSize(t, dim, *by) for t, dim, own in quotients_of(tensors) if form and (by := form.told_by(own)))
        return next(told, None)

    def value(self, node: fx.Node) -> fx.Node:
        """The node of the new graph that has the value of a node: one that was added, or a size."""
        if node not in self.made:
            size = self.size(node)
            assert size is not None
            told = self.graph.call_function(torch.ops.aten.sym_size.int, (self.made[size.tensor], size.dim))
            if size.plus:
                told = self.graph.call_function(operator.add, (told, size.plus))
            if size.over > 1:
                told = self.graph.call_function(operator.floordiv, (told, size.over))
            self._noted(node, told)
        return self.made[node]

    def _noted(self, node: fx.Node, made: fx.Node) -> fx.Node:
        made.meta = dict(node.meta)
        self.made[node] = made
        return made


def quotients_of(tensors: Iterable[fx.Node]) -> Iterator[tuple[fx.Node, int, QuotientForm]]:
    """The dimensions of tensors whose sizes have the form of a quotient."""
    for tensor in tensors:
        for dim, size in enumerate(tensor.meta["val"].shape):
            if isinstance(size, torch.SymInt) and (form := QuotientForm.of(size)) is not None:
                yield tensor, dim, form


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

"""Values at nodes of a graph, as it runs: a copy of the graph, or the graph itself, hands each to a function.

before   linear -> relu -> linear_1
after    linear -> hand_over(_), relu -> linear_1        hand_over notes the value, and changes nothing
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import MethodType

from torch import Tensor, fx

from repl_fx.graph.captured import copy_graph


def watched(gm: fx.GraphModule, notes: Mapping[fx.Node, Callable[[Tensor], None]]) -> fx.GraphModule:
    """A copy of a graph that hands values to functions, right after each was made.

    Args:
        gm: any graph; it is not changed, and shares its tensors with the copy.
        notes: for nodes of the graph, the function that gets its value; an exception that it raises ends the run.
    """
    copied = copy_graph(gm, compiled=False)
    nodes = dict(zip(gm.graph.nodes, copied.graph.nodes, strict=True))
    for node, note in notes.items():
        with _right_after(nodes[node]):
            copied.graph.call_function(_handing_over(note), (nodes[node],))
    copied.recompile()
    return copied


def _right_after(node: fx.Node) -> AbstractContextManager[None]:
    """Nodes made meanwhile come behind a node, and behind all inputs."""
    if node.op != "placeholder":
        return node.graph.inserting_after(node)
    return node.graph.inserting_before(next(one for one in node.graph.nodes if one.op != "placeholder"))


def _handing_over(note: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
    """A function with a name, as code of a graph calls it."""

    def hand_over(value: Tensor) -> None:
        note(value)

    return hand_over


def watching_forward(gm: fx.GraphModule, notes: Mapping[fx.Node, Callable[[Tensor], None]]) -> MethodType:
    """A forward of a graph module itself, with its own state, mode, hooks and wrappers, that hands values to functions.

    Args:
        gm: a graph module; its code stays as it is.
        notes: for nodes of its graph, the function that gets the value.
    """
    # Code of a copy of the graph, run on the module: no tensor, no mode and no hook is there twice.
    return MethodType(type(watched(gm, notes)).forward, gm)

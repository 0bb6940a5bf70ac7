"""Values at nodes of a graph, as it runs: a copy of the graph hands each to a function.

before   linear -> relu -> linear_1
after    linear -> watch_0(_), relu -> linear_1        watch_0 notes the value, and changes nothing
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, fx, nn

from repl_fx.graph.captured import copy_graph, unique_name


class Watch(nn.Module):
    """Hands a value to a function."""

    def __init__(self, note: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.note = note

    def forward(self, value: Tensor) -> None:
        """Note the value."""
        self.note(value)


def watched(gm: fx.GraphModule, notes: Mapping[fx.Node, Callable[[Tensor], None]]) -> fx.GraphModule:
    """A copy of a graph that hands values to functions, right after each was made.

    Args:
        gm: any graph; it is not changed, and shares its tensors with the copy.
        notes: for nodes of the graph, the function that gets its value; an exception that it raises ends the run.
    """
    copied = copy_graph(gm, compiled=False)
    nodes = dict(zip(gm.graph.nodes, copied.graph.nodes, strict=True))
    behind_inputs = next(node for node in copied.graph.nodes if node.op != "placeholder")
    for node, note in notes.items():
        name = unique_name(copied, "watch")
        copied.add_submodule(name, Watch(note))
        inputs = node.op == "placeholder"
        place = copied.graph.inserting_before(behind_inputs) if inputs else copied.graph.inserting_after(nodes[node])
        with place:
            copied.graph.call_module(name, (nodes[node],))
    copied.recompile()
    return copied

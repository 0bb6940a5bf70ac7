"""Observe values of a graph while it runs: functions of the caller get every value that some nodes have.

    before   add_1 -> linear -> …
    after    add_1 -> linear -> …
             add_1 -> observers.0(add_1)

A value is shown right after it was computed, before anything can write over it; the function must not change it, and
copies what it keeps. The graph computes what it did before.
Never touches: the graph it is given, and its tensors, which are shared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import fx, nn

from repl_fx.graph.captured import copy_graph, unique_name
from repl_fx.passes.driver import Result

Observe = Callable[[Any], None]


def observe_values(gm: fx.GraphModule, observers: Iterable[tuple[fx.Node, Observe]]) -> Result:
    """Let functions see the values of nodes.

    Args:
        gm: a graph in normal form.
        observers: nodes of it, each with a function that gets its values.

    Returns:
        A new graph module, whose code is not written yet, with the names of the nodes that are observed.
    """
    made = copy_graph(gm, compiled=False)
    graph, copies = made.graph, dict(zip(gm.graph.nodes, made.graph.nodes, strict=True))
    last_input = next((node for node in reversed(list(graph.nodes)) if node.op == "placeholder"), None)
    root = unique_name(made, "observers")
    observed: dict[str, None] = {}
    for number, (node, observe) in enumerate(observers):
        copied, path = copies[node], f"{root}.{number}"
        made.add_submodule(path, _Observer(observe))
        # Placeholders stand together.
        with graph.inserting_after(last_input if copied.op == "placeholder" else copied):
            graph.call_module(path, (copied,)).meta["val"] = None
        observed[node.name] = None
    return Result(made, tuple(observed))


class _Observer(nn.Module):
    """Gives a value to a function."""

    def __init__(self, observe: Observe) -> None:
        super().__init__()
        self.observe = observe

    def forward(self, value: Any) -> None:
        self.observe(value)

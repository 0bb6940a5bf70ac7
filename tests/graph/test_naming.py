"""Names that depend on structure alone."""

from __future__ import annotations

import torch
from torch import fx

from repl_fx.graph.naming import named_alike


def _graph(names: tuple[str, str, str], scale: float = 2.0) -> fx.Graph:
    graph = fx.Graph()
    x = graph.placeholder(names[0])
    x.meta["val"] = names[0]
    added = graph.create_node("call_function", torch.add, (x, x), name=names[1])
    read = graph.create_node("get_attr", "gain", name=names[2])
    graph.output(graph.call_function(torch.mul, (added, read), {"out": None}) if scale == 2.0 else (added, scale))
    return graph


def test_graphs_that_do_the_same_have_the_same_code() -> None:
    one, other = (_graph(names) for names in (("x", "sum", "g"), ("add_7", "add_8", "blocks_3_gain")))
    assert str(one) != str(other)
    assert named_alike(one).python_code("self").src == named_alike(other).python_code("self").src
    assert (
        named_alike(_graph(("x", "sum", "g"), 3.0)).python_code("self").src != named_alike(one).python_code("self").src
    )


def test_notes_come_along_and_the_graph_stays() -> None:
    graph = _graph(("x", "sum", "g"))
    names = [node.name for node in graph.nodes][:3]
    named = named_alike(graph)
    assert next(iter(named.nodes)).meta["val"] == "x"
    assert [node.name for node in graph.nodes][:3] == names

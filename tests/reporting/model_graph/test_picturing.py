"""What of a group is drawn, and how large."""

from __future__ import annotations

from typing import Any

from repl_fx.reporting.model_graph.document import Node, NodeKind, Value
from repl_fx.reporting.model_graph.picturing import group_size, node_size, port_size, simplified

VALUES = [Value("2×8 float32", (2, 8)), Value("int"), Value("(8×8 float32, 8 float32)"), Value("")]


def _node(kind: NodeKind, value: int) -> Node:
    return Node("n", 0, kind, 0, 0, value, 0, 0, 0, None)


def _simplified(nodes: dict[Any, Node], edges: list[tuple[Any, Any]]) -> tuple[list[tuple[Any, Any]], set[Any]]:
    drawn, hidden = simplified(dict.fromkeys(edges), nodes, VALUES)
    return list(drawn), hidden


def test_sizes_and_checks_are_not_drawn_and_tuples_are() -> None:
    nodes = {0: _node("input", 0), 1: _node("operator", 1), 2: _node("operator", 3), 3: _node("operator", 2)}
    assert _simplified(nodes, [(0, 1), (1, -1), (0, 2), (0, 3), (3, -1)]) == ([(0, 3), (3, -1)], {1, 2})


def test_the_results_of_a_synthesis_are_read_from_it() -> None:
    nodes = {
        ("in", 9): _node("parameter", 0),
        0: _node("parameter", 0),
        1: _node("synthesis", 2),
        2: _node("operator", 0),
        3: _node("layer", 0),
    }
    drawn, hidden = _simplified(nodes, [(("in", 9), 1), (0, 1), (1, 2), (2, 3)])
    # A weight that a layer reads, too, stays.
    assert (drawn, hidden) == ([(1, 3)], {("in", 9), 0, 2})
    assert _simplified(nodes, [(0, 1), (0, 3)])[0] == [(0, 1), (0, 3)]


def test_boxes_are_as_large_as_what_they_say() -> None:
    assert port_size("add")[1] < node_size("add", "2×8")[1] < group_size("repeat", "blocks", "blocks")[1]
    assert node_size("a" * 30, "2")[0] > node_size("a", "2" * 12)[0] > node_size("a", "2")[0]
    assert node_size("a" * 400, "")[0] == 320 and node_size("a", "2" * 400)[0] < 200
    # A block is shown by its name.
    assert group_size("block", "3", "a.very.long.path.3") > group_size("module", "3", "a.very.long.path.3")


def test_what_packs_tensors_for_the_output_is_drawn() -> None:
    nodes = {0: _node("layer", 0), 1: _node("operator", 3), 2: _node("output", 3)}
    assert _simplified(nodes, [(0, 1), (1, 2)]) == ([(0, 1), (1, 2)], set())

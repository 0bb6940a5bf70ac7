"""Graphs of the document: words, values and edges of a small model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

import repl_fx
from repl_fx.reporting.model_graph.document import Group
from repl_fx.reporting.model_graph.model_document import document_of
from tests.model_graphs import TOKENS, require_tree, small_document
from tests.nets import MlpNet


def test_nodes_have_words_values_and_costs() -> None:
    (graph,) = small_document().views.before.graphs
    (fc1,) = (node for node in graph.nodes if graph.words[node.target] == "blocks.1.fc1")
    assert (graph.words[fc1.label], fc1.kind, fc1.parameters) == ("fc1", "layer", 16 * 32 + 32)
    value = graph.values[fc1.value]
    assert (value.shape, value.dtype, value.text) == ((2, 4, 32), "float32", "2×4×32 float32")
    assert fc1.flops == 2 * 2 * 4 * 16 * 32
    assert graph.groups[fc1.group].name == "blocks.1"


def test_edges_join_values_and_readers() -> None:
    (graph,) = small_document().views.before.graphs
    assert all(source < target for source, target in graph.edges)
    names = [node.name for node in graph.nodes]
    assert (names.index("blocks_1_norm2"), names.index("blocks_1_fc1")) in graph.edges


def test_groups_know_what_streams_in_and_out() -> None:
    document = small_document()
    (graph,) = document.views.before.graphs
    for place, group in enumerate(graph.groups):
        assert len(document.layouts[group.layout].boxes) == len(group.children) + len(group.inputs) + len(group.outputs)
        inside = {node for node, row in enumerate(graph.nodes) if _is_within(graph.groups, row.group, place)}
        assert set(group.inputs) == {one for one, other in graph.edges if one not in inside and other in inside}
        assert set(group.outputs) == {one for one, other in graph.edges if one in inside and other not in inside}


def test_a_block_of_which_nothing_is_left_is_shown() -> None:
    torch.manual_seed(0)
    document = document_of(repl_fx.transform(MlpNet(depth=3), (TOKENS,), surrogate="identity"), "net.py")
    assert document.views.after is not None
    (after,) = document.views.after.graphs
    (empty,) = (place for place, group in enumerate(after.groups) if group.kind == "surrogate")
    group = after.groups[empty]
    assert (group.nodes, group.parameters, group.flops) == (0, 0, 0)
    repeat = after.groups[group.parent or 0]
    place = repeat.children.index(-1 - empty)
    assert [after.groups[-1 - child].label for child in repeat.children] == ["0", "1", "2"]
    routes = [(route.source, route.target) for route in document.layouts[repeat.layout].routes]
    assert (place - 1, place) in routes and (place, place + 1) in routes
    require_tree(after)


def _is_within(groups: Sequence[Group], group: int | None, around: int) -> bool:
    while group is not None and group != around:
        group = groups[group].parent
    return group is not None

"""The document of small models: each node in one group, costs that add up, surrogates in the places of blocks."""

from __future__ import annotations

import torch

from repl_fx.report.model_graph.building import document_of_model
from repl_fx.report.model_graph.document import Graph
from tests.captures import captured
from tests.model_graphs import TOKENS, small_document
from tests.nets import TokenNet


def _require_tree(graph: Graph) -> None:
    """The groups are a tree with each node in one of them."""
    seen: list[int] = []
    for place, group in enumerate(graph.groups):
        assert (group.parent is None) is (place == 0)
        assert group.parent is None or group.parent < place
        seen += group.children
        for child in group.children:
            assert (graph.nodes[child].group if child >= 0 else graph.groups[-1 - child].parent) == place
    assert sorted(seen) == [*range(-len(graph.groups), -1), *range(len(graph.nodes))]
    assert graph.groups[0].nodes == len(graph.nodes)


def test_each_node_lies_in_one_group() -> None:
    document = small_document()
    assert document.views.after is not None
    for view in (document.views.before, document.views.after):
        for graph in view.graphs:
            _require_tree(graph)


def test_a_replaced_block_is_a_surrogate_afterwards() -> None:
    document = small_document()
    assert document.views.after is not None
    (before,), (after,) = document.views.before.graphs, document.views.after.graphs
    (surrogate,) = (group for group in after.groups if group.kind == "surrogate")
    assert (surrogate.status, surrogate.surrogate) == ("replaced", "bottleneck")
    assert surrogate.counterpart is not None
    block = before.groups[surrogate.counterpart]
    assert (block.kind, block.name, after.groups[block.counterpart or 0]) == ("block", surrogate.name, surrogate)
    assert surrogate.parameters < block.parameters


def test_costs_add_up() -> None:
    document = small_document()
    (graph,) = document.views.before.graphs
    root, total = graph.groups[0], document.totals.before
    assert (root.parameters, root.flops, root.kept) == (total.parameters, total.flops, total.kept)
    assert root.flops == sum(node.flops or 0 for node in graph.nodes) > 0


def test_equal_blocks_share_a_layout() -> None:
    (graph,) = small_document().views.before.graphs
    assert len({group.layout for group in graph.groups if group.kind == "block"}) == 1


def test_a_model_alone_has_no_view_after() -> None:
    torch.manual_seed(0)
    document = document_of_model(captured(TokenNet(depth=3), (TOKENS,)), "net.py", ["random weights"])
    assert (document.views.after, document.plan, document.totals.after) == (None, None, None)
    assert document.model.notes == ("random weights",)
    _require_tree(document.views.before.graphs[0])

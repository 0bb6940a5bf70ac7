"""The document of small models: each node in one group, costs that add up, surrogates in the places of blocks."""

from __future__ import annotations

import torch

from repl_fx.costs.counted import measure_parts
from repl_fx.report.model_graph.building import document_of_model, document_of_result
from tests.captures import captured, transformed
from tests.model_graphs import TOKENS, require_tree, small_document
from tests.nets import ConvNet, TokenNet


def test_each_node_lies_in_one_group() -> None:
    document = small_document()
    assert document.views.after is not None
    for view in (document.views.before, document.views.after):
        for graph in view.graphs:
            require_tree(graph)


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


def test_costs_are_those_of_the_model_that_trains() -> None:
    torch.manual_seed(0)
    result = transformed(ConvNet(), (torch.zeros(2, 3, 8, 8),), surrogate="slim", blocks=["blocks.1"])
    document = document_of_result(result, "net.py")
    before, after = document.totals.before, document.totals.after
    for module, parts, view, cost in (
        (result.captured, result.captured_parts.parts, document.views.before, before),
        (result.module, result.all_parts, document.views.after, after),
    ):
        assert view is not None and cost is not None
        counted = measure_parts(module, parts)
        assert (cost.parameters, cost.flops, cost.kept) == (counted.parameters, counted.flops, counted.activation_bytes)
        (graph,) = view.graphs
        assert cost.parameters == graph.groups[0].parameters == sum(node.parameters for node in graph.nodes)
        assert cost.flops == sum(node.flops or 0 for node in graph.nodes) > 0


def test_equal_blocks_share_a_layout() -> None:
    (graph,) = small_document().views.before.graphs
    assert len({group.layout for group in graph.groups if group.kind == "block"}) == 1


def test_a_model_alone_has_no_view_after() -> None:
    torch.manual_seed(0)
    document = document_of_model(captured(TokenNet(depth=3), (TOKENS,)), "net.py", ["random weights"])
    assert (document.views.after, document.plan, document.totals.after) == (None, None, None)
    assert document.model.notes == ("random weights",)
    require_tree(document.views.before.graphs[0])

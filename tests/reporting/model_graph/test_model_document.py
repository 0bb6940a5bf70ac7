"""The document of small models: each node in one group, costs that add up, surrogates in the places of blocks."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.artifact import load_artifact
from repl_fx.artifact.places import COMPRESSION
from repl_fx.costs.counted import measure_costs, measure_parts
from repl_fx.errors import BadInput
from repl_fx.pipeline import rewrite
from repl_fx.planning.options import Options
from repl_fx.reporting.model_graph.document import Document
from repl_fx.reporting.model_graph.model_document import document_of, document_of_artifact
from repl_fx.reporting.page.sections import sections_of
from repl_fx.tracing.parts.part_repeats import find_in_parts
from tests.model_graphs import TOKENS, require_tree, small_document
from tests.nets import ConvNet, MlpNet, TokenNet
from tests.planning.scoring.test_scores import SCORES


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


def test_a_plan_from_scores_says_them() -> None:
    scores = {f"blocks.{i}": i / 8 for i in range(1, 5)}
    args = (torch.zeros(2, 3, 8, 8),)
    result = repl_fx.transform(ConvNet(), args, surrogate="identity", budget={"params": 0.9}, scores=scores)
    plan = document_of(result, "net.py").plan
    assert plan is not None
    assert {row.block: row.score for row in plan.blocks} == {"blocks.0": None, **scores}
    (table,) = next(s for s in sections_of(document_of(result, "net.py")) if s.key == "plan").tables
    assert "score" in [column.name for column in table.columns]
    assert any("0.125" in row for row in table.rows)


def test_costs_are_those_of_the_model_that_trains() -> None:
    torch.manual_seed(0)
    result = repl_fx.transform(ConvNet(), (torch.zeros(2, 3, 8, 8),), surrogate="slim", blocks=["blocks.1"])
    document = document_of(result, "net.py")
    before, after = document.totals.before, document.totals.after
    assert result.in_place.model is result.model
    for module, view, cost in (
        (result.captured, document.views.before, before),
        (result.model, document.views.after, after),
    ):
        assert view is not None and cost is not None
        counted = measure_costs(module, result.args)
        assert view.graphs[0].groups[0].kept == cost.kept
        assert (cost.parameters, cost.flops, cost.kept) == (counted.parameters, counted.flops, counted.activation_bytes)
        (graph,) = view.graphs
        assert cost.parameters == graph.groups[0].parameters == sum(node.parameters for node in graph.nodes)
        assert cost.flops == sum(node.flops or 0 for node in graph.nodes) > 0


def test_equal_blocks_share_a_layout() -> None:
    (graph,) = small_document().views.before.graphs
    assert len({group.layout for group in graph.groups if group.kind == "block"}) == 1


def test_a_model_alone_has_no_view_after() -> None:
    torch.manual_seed(0)
    document = document_of(
        find_in_parts(repl_fx.capture_parts(TokenNet(depth=3), (TOKENS,))), "net.py", ["random weights"]
    )
    assert (document.views.after, document.plan, document.totals.after) == (None, None, None)
    assert document.model.notes == ("random weights", "sizes: batch any; length any")
    require_tree(document.views.before.graphs[0])


class _InParts(nn.Module):
    """Two parts, with a step between them that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.last = MlpNet(depth=3), nn.Sequential(nn.Linear(10, 4), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        y = self.trunk(x)
        if y.sum() > 0:
            y = -y
        return self.last(y)  # type: ignore[no-any-return]


def test_a_model_in_parts_has_a_graph_for_each() -> None:
    torch.manual_seed(0)
    parts = repl_fx.capture_parts(_InParts(), (TOKENS,), paths=["trunk", "last"])
    options: Options = {"surrogate": "identity"}
    result = rewrite(parts, options, check=False)
    document = document_of(result, "net.py")
    assert document.views.after is not None and document.totals.after is not None
    for view in (document.views.before, document.views.after):
        assert [graph.id for graph in view.graphs] == ["trunk", "last"]
        for graph in view.graphs:
            require_tree(graph)
    trunk, last = document.views.after.graphs
    assert [group.name for group in trunk.groups if group.kind == "surrogate"] == ["trunk.blocks.1"]
    # A part in which nothing is replaced is the same before and after.
    assert last == document.views.before.graphs[1]
    assert [group.counterpart for group in last.groups] == list(range(len(last.groups)))
    assert (document.model.type, document.model.inputs[0].name) == ("_InParts", "trunk.x")
    counted = measure_parts(parts.module, parts.parts)
    assert (document.totals.before.flops, document.totals.before.kept) == (counted.flops, counted.activation_bytes)


def test_an_artifact_has_what_its_directory_says(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = MlpNet(depth=3)
    place = repl_fx.save(repl_fx.transform(net, (TOKENS,), surrogate="identity"), tmp_path / "artifact")
    artifact = load_artifact(place, net, args=(TOKENS,))
    scores = place / COMPRESSION / "scores.json"
    scores.parent.mkdir()
    scores.write_text(SCORES.to_json())
    document = document_of_artifact(artifact, "net.py")
    assert document.scores is not None and document.bench is None
    assert document.plan is not None
    assert [row.status for row in document.plan.blocks] == ["kept", "replaced", "kept"]
    assert msgspec.json.decode(document.to_json(), type=Document) == document
    scores.write_text("[]")
    with pytest.raises(BadInput, match=r"scores\.json cannot be read"):
        document_of_artifact(artifact, "net.py")

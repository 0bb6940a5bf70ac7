"""The graph collection of Model Explorer."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest

from repl_fx.reporting.model_graph.model_explorer import graph_collection
from tests.model_graphs import small_document


def _graph(name: str) -> dict[str, Any]:
    (found,) = (graph for graph in graph_collection(small_document())["graphs"] if graph["id"] == name)
    return dict(found)


def test_groups_are_layers() -> None:
    spaces = {node["id"]: node["namespace"] for node in _graph("before")["nodes"]}
    assert spaces["blocks_1_attn_qkv"] == "blocks/1/attn"
    assert spaces["head"] == ""


def test_nodes_and_edges_are_those_of_the_graph() -> None:
    (graph,) = small_document().views.before.graphs
    nodes = _graph("before")["nodes"]
    assert [node["id"] for node in nodes] == [node.name for node in graph.nodes]
    edges = {(edge["sourceNodeId"], node["id"]) for node in nodes for edge in node["incomingEdges"]}
    assert edges == {(graph.nodes[one].name, graph.nodes[other].name) for one, other in graph.edges}


def test_surrogates_are_coloured_and_named() -> None:
    after = _graph("after")
    (surrogate,) = (name for name, of in after["groupNodeAttributes"].items() if of["kind"] == "surrogate")
    assert after["groupNodeAttributes"][surrogate]["surrogate"] == "bottleneck"
    colours = {
        one["backgroundColor"] for one in after["groupNodeConfigs"] if re.search(one["namespaceRegex"], surrogate)
    }
    assert len(colours) == 1
    inside = {node["id"] for node in after["nodes"] if f"{node['namespace']}/".startswith(f"{surrogate}/")}
    assert inside


def test_names_with_slashes_make_no_layers_and_equal_ones_stay_apart() -> None:
    document = small_document()
    (graph,) = document.views.before.graphs
    groups = tuple(
        msgspec.structs.replace(group, label="a/b" if group.kind == "block" else group.label) for group in graph.groups
    )
    view = msgspec.structs.replace(document.views.before, graphs=(msgspec.structs.replace(graph, groups=groups),))
    views = msgspec.structs.replace(document.views, before=view)
    (before, _) = graph_collection(msgspec.structs.replace(document, views=views))["graphs"]
    assert {"blocks/a|b", "blocks/a|b (2)", "blocks/a|b (3)"} <= set(before["groupNodeAttributes"])


def test_model_explorer_reads_it_back() -> None:
    reason = "Model Explorer is not installed: pip install ai-edge-model-explorer"
    builder = pytest.importorskip("model_explorer.graph_builder", reason=reason)
    dacite = pytest.importorskip("dacite", reason=reason)
    text = json.dumps(graph_collection(small_document()), allow_nan=False)
    # As its own server reads a graph, but without leave for fields that it does not know.
    strict = dacite.Config(strict=True)
    read = dacite.from_dict(builder.GraphCollection, json.loads(text), strict)
    assert [graph.id for graph in read.graphs] == ["before", "after"]
    (graph,) = small_document().views.before.graphs
    assert [node.id for node in read.graphs[0].nodes] == [node.name for node in graph.nodes]
    assert sum(len(node.incomingEdges) for node in read.graphs[0].nodes) == len(graph.edges)

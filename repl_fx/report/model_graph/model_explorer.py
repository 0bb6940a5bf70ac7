"""The graphs of a document as Model Explorer reads them: a graph collection, and data to colour its nodes by.

    document.views.before, .after  ->  graphs `before` and `after`, or `before: backbone`, … for a model in parts
    groups                         ->  namespaces, which it shows as layers; surrogates have a colour of their own
    costs, surrogates              ->  node data, a file for each

See https://github.com/google-ai-edge/model-explorer; the names of its fields are those of `graph_builder` and
`node_data_builder` in its Python package.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from repl_fx.report.model_graph.document import Document, Graph, Group, Node

_SURROGATE, _REPEAT = "#ffe0b2", "#e3f2fd"
_COSTS: Mapping[str, str] = {"parameters": "parameters", "FLOPs": "flops", "bytes kept for backward": "kept"}
_GRADIENT = [{"stop": 0, "bgColor": "#ffffff"}, {"stop": 1, "bgColor": "#e57373"}]


def graph_collection(document: Document) -> dict[str, Any]:
    """The graph collection: what `model-explorer FILE.json` opens."""
    graphs = [_graph(name, graph) for name, graph in _graphs(document)]
    return {"label": document.model.type, "graphs": graphs, "graphSorting": "name_desc"}


def node_data(document: Document) -> dict[str, dict[str, Any]]:
    """The node data, by title: costs that are known, and of surrogates 1 for each node; a file for each."""
    found = {title: _data(document, title, partial(_cost, name)) for title, name in _COSTS.items()}
    found["surrogates"] = _data(document, "surrogates", _is_surrogate)
    return {title: data for title, data in found.items() if any(of["results"] for of in data.values())}


def _graphs(document: Document) -> Iterator[tuple[str, Graph]]:
    """The graphs of both views, with their ids."""
    for name, view in (("before", document.views.before), ("after", document.views.after)):
        for graph in () if view is None else view.graphs:
            yield f"{name}: {graph.id}" if graph.id else name, graph


def _graph(name: str, graph: Graph) -> dict[str, Any]:
    namespaces = _namespaces(graph)
    feeders: dict[int, list[int]] = {}
    for source, target in graph.edges:
        feeders.setdefault(target, []).append(source)
    coloured = [
        {"namespaceRegex": f"^{re.escape(namespace)}$", "backgroundColor": colour}
        for group, namespace in zip(graph.groups, namespaces, strict=True)
        if (colour := {"surrogate": _SURROGATE, "repeat": _REPEAT}.get(group.kind))
    ]
    return {
        "id": name,
        "nodes": [
            _node(graph, node, namespaces[node.group], [graph.nodes[feeder] for feeder in feeders.get(place, ())])
            for place, node in enumerate(graph.nodes)
        ],
        "groupNodeAttributes": {
            namespace: dict(_group_facts(group)) for group, namespace in zip(graph.groups, namespaces, strict=True)
        },
        "groupNodeConfigs": coloured,
        "layoutConfigs": {"keepLayersWithASingleChild": True},
    }


def _namespaces(graph: Graph) -> list[str]:
    """The namespace of each group: the labels down to it, told apart where two are the same."""
    found: list[str] = []
    taken: set[str] = set()
    for group in graph.groups:
        if group.parent is None:
            found.append("")
            continue
        # The separator is no part of a label.
        name = "/".join(filter(None, (found[group.parent], group.label.replace("/", "|"))))
        number = 1
        unique = name
        while unique in taken:
            number += 1
            unique = f"{name} ({number})"
        taken.add(unique)
        found.append(unique)
    return found


def _node(graph: Graph, node: Node, namespace: str, feeders: list[Node]) -> dict[str, Any]:
    words = graph.words
    facts = {
        "kind": node.kind,
        "target": words[node.target],
        "parameters": node.parameters or None,
        "FLOPs": node.flops or None,
        "bytes kept for backward": node.kept or None,
        "source": None if node.source is None else words[node.source],
    }
    attributes = [{"key": key, "value": _text(value)} for key, value in facts.items() if value is not None]
    value = graph.values[node.value]
    made = [{"id": "0", "attrs": [{"key": "shape", "value": value.text}]}] if value.text else []
    return {
        "id": node.name,
        "label": words[node.label],
        "namespace": namespace,
        "attrs": attributes,
        "incomingEdges": [
            {"sourceNodeId": feeder.name, "sourceNodeOutputId": "0", "targetNodeInputId": str(place)}
            for place, feeder in enumerate(feeders)
        ],
        "outputsMetadata": made,
    }


def _group_facts(group: Group) -> Iterator[tuple[str, str]]:
    facts = {
        "name": group.name,
        "kind": group.kind,
        "class": group.type,
        "copies": group.copies,
        "status": group.status,
        "surrogate": group.surrogate,
        "reason": group.reason,
        "parameters": group.parameters,
        "FLOPs": group.flops,
        "bytes kept for backward": group.kept,
    }
    for key, value in facts.items():
        if value is not None:
            yield key, _text(value)


def _data(document: Document, title: str, value_of: Callable[[Graph, Node], int | None]) -> dict[str, Any]:
    """Node data of all graphs; what has none, or 0, is left out."""
    found = {}
    for name, graph in _graphs(document):
        results = {node.name: {"value": int(value)} for node in graph.nodes if (value := value_of(graph, node))}
        found[name] = {"name": title, "results": results, "gradient": _GRADIENT}
    return found


def _cost(name: str, graph: Graph, node: Node) -> int | None:
    cost: int | None = getattr(node, name)
    return cost


def _is_surrogate(graph: Graph, node: Node) -> bool:
    """Whether a node lies in a surrogate, at any depth."""
    place: int | None = node.group
    while place is not None:
        if graph.groups[place].kind == "surrogate":
            return True
        place = graph.groups[place].parent
    return False


def _text(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)

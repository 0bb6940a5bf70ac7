"""The graphs of a document as Model Explorer reads them: a graph collection.

    document.views.before, .after  ->  graphs `before` and `after`, or `before: backbone`, … for a model in parts
    groups                         ->  namespaces, which it shows as layers; surrogates have a colour of their own
    costs                          ->  attributes of nodes and layers

See https://github.com/google-ai-edge/model-explorer; the names of its fields are those of `graph_builder` in its Python
package.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import chain, count
from typing import Any

from repl_fx.graph.grouping import grouped
from repl_fx.reporting.model_graph.document import Document, Graph, Group, Node

_SURROGATE, _REPEAT = "#ffe0b2", "#e3f2fd"


def graph_collection(document: Document) -> dict[str, Any]:
    """The graph collection: what `model-explorer FILE.json` opens."""
    views = {"before": document.views.before, "after": document.views.after}
    graphs = [
        _graph(f"{name}: {graph.id}" if graph.id else name, graph)
        for name, view in views.items()
        for graph in (() if view is None else view.graphs)
    ]
    return {"label": document.model.type, "graphs": graphs, "graphSorting": "name_desc"}


def _graph(name: str, graph: Graph) -> dict[str, Any]:
    namespaces = _namespaces(graph)
    feeders = grouped((target, source) for source, target in graph.edges)
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
        numbered = chain([name], (f"{name} ({number})" for number in count(2)))
        found.append(next(one for one in numbered if one not in taken))
        taken.add(found[-1])
    return found


def _node(graph: Graph, node: Node, namespace: str, feeders: list[Node]) -> dict[str, Any]:
    facts = {
        "kind": node.kind,
        "target": graph.words[node.target],
        "parameters": node.parameters or None,
        "FLOPs": node.flops or None,
        "bytes kept for backward": node.kept or None,
        "source": None if node.source is None else graph.words[node.source],
    }
    value = graph.values[node.value]
    made = [{"id": "0", "attrs": [{"key": "shape", "value": value.text}]}] if value.text else []
    return {
        "id": node.name,
        "label": graph.words[node.label],
        "namespace": namespace,
        "attrs": [{"key": key, "value": words} for key, words in _words(facts)],
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
    return _words(facts)


def _words(facts: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """The facts that are known, in words."""
    for key, value in facts.items():
        if value is not None:
            yield key, f"{value:,}" if isinstance(value, int) else str(value)

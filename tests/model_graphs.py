"""The document of a small transformed model, which tests of reports share: building it once is most of a test."""

from __future__ import annotations

from functools import cache

import torch

import repl_fx
from repl_fx.reporting.model_graph.document import Document, Graph
from repl_fx.reporting.model_graph.model_document import document_of
from tests.nets import TokenNet

TOKENS = torch.zeros(2, 4, 16)


@cache
def small_document() -> Document:
    """The document of three transformer blocks, of which `blocks.1` is replaced by `bottleneck`."""
    torch.manual_seed(0)
    return document_of(repl_fx.transform(TokenNet(depth=3), (TOKENS,), surrogate="bottleneck"), "net.py")


def require_tree(graph: Graph) -> None:
    """The groups are a tree with each node in one of them."""
    seen: list[int] = []
    for place, group in enumerate(graph.groups):
        assert (group.parent is None) is (place == 0)
        assert group.parent is None or group.parent < place
        seen += group.children
        for child in group.children:
            assert (graph.nodes[child].group if child >= 0 else graph.groups[-1 - child].parent) == place
        inner = (1 if child >= 0 else graph.groups[-1 - child].nodes for child in group.children)
        assert group.nodes == sum(inner)
    assert sorted(seen) == [*range(-len(graph.groups), -1), *range(len(graph.nodes))]
    assert graph.groups[0].nodes == len(graph.nodes)

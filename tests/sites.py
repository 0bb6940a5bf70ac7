"""Sites of surrogates in graphs that are made by hand."""

from __future__ import annotations

from repl_fx.finding.blocks import Block
from repl_fx.surrogates.shared.site import Site
from tests.graphs import Graph


def layer_site(width: int) -> Site:
    """A layer of the given width between two others."""
    graph = Graph()
    nodes = [graph.input()]
    for outputs in (8, width, 8):
        nodes.append(graph.linear(nodes[-1], outputs))

    def block(number: int) -> Block:
        given, made = nodes[number : number + 2]
        return Block(f"net.{number}", (made,), (given,), (made,), (), (), (), None, {})

    return Site(graph.done(nodes[-1]), block(1), block(0), block(2), "net")

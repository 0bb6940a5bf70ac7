"""Graphs in normal form, built node by node, without a trace."""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch import fx, nn

from repl_fx.finding.blocks import Repeat
from repl_fx.graph.captured import CapturedModule


class Graph:
    """Builds a graph in normal form node by node, without a trace."""

    def __init__(self) -> None:
        self.graph, self.root, self.layers = fx.Graph(), nn.Module(), 0

    def input(self, width: int = 8) -> fx.Node:
        return self._put(self.graph.placeholder("x"), (2, width))

    def linear(self, x: fx.Node, width: int = 8, reuse: str | None = None) -> fx.Node:
        name = reuse or f"layer_{self.layers}"
        if reuse is None:
            self.root.add_module(name, nn.Linear(x.meta["val"].shape[-1], width, device="meta"))
            self.layers += 1
        return self._put(self.graph.call_module(name, (x,)), (2, width))

    def call(self, function: Callable[..., object], *args: fx.Node) -> fx.Node:
        return self._put(self.graph.call_function(function, args), tuple(args[0].meta["val"].shape))

    def done(self, result: fx.Node) -> fx.GraphModule:
        self.graph.output(result)
        return CapturedModule(self.root, self.graph)

    def _put(self, node: fx.Node, shape: tuple[int, ...]) -> fx.Node:
        node.meta["val"] = torch.empty(*shape, device="meta")
        return node


def residual(depth: int, inner: int = 2, width: int = 8) -> fx.GraphModule:
    """A stem, `depth` residual blocks of `inner` linear layers with ReLU each, a head."""
    graph = Graph()
    x = graph.linear(graph.input(), width)
    for _ in range(depth):
        y = x
        for _ in range(inner):
            y = graph.call(torch.relu, graph.linear(y, width))
        x = graph.call(operator.add, x, y)
    return graph.done(graph.linear(x, 3))


def shape_of(repeats: tuple[Repeat, ...]) -> list[tuple[int, int]]:
    return [(len(repeat), len(repeat.blocks[0].nodes)) for repeat in repeats]


def assert_sound(repeats: tuple[Repeat, ...]) -> None:
    """What holds for every repeat: copies alike, chained, disjoint, and nothing else leaks between them."""
    seen: set[fx.Node] = set()
    for repeat in repeats:
        assert len(repeat) >= 2
        for block in repeat.blocks:
            assert not seen & block.node_set
            seen |= block.node_set
            assert block.input not in block.node_set
            assert block.output in block.node_set
            assert [n.target if n.op == "call_function" else n.op for n in block.nodes] == [
                n.target if n.op == "call_function" else n.op for n in repeat.blocks[0].nodes
            ]
            assert len(block.parameters) == len(repeat.blocks[0].parameters)
        for before, after in zip(repeat.blocks, repeat.blocks[1:], strict=False):
            assert after.input is before.output
            assert after.side_inputs == repeat.blocks[1].side_inputs

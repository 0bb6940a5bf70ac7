"""Names of repeats and blocks: module paths where they tell the copies apart, numbers elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

import repl_fx
from repl_fx.finding.block_names import BlockNames
from repl_fx.finding.node_table import node_table
from tests.graphs import Graph


def _chain(*paths: str) -> tuple[BlockNames, list[fx.Node]]:
    """Linear layers in a row, each in a module of this path."""
    graph = Graph()
    x, nodes = graph.input(), []
    for path in paths:
        x = graph.linear(x)
        x.meta["nn_module_stack"] = {path: (path, nn.Linear)}
        nodes.append(x)
    return BlockNames(node_table(graph.done(x))), nodes


def test_module_paths_that_differ_are_the_names() -> None:
    named, _ = _chain("net.0.up", "net.0.down", "net.1.up", "net.1.down")
    assert named.names([[0, 1], [2, 3]]) == ("net", ["net.0", "net.1"])


def test_blocks_of_several_modules_are_named_after_the_first_and_the_last() -> None:
    named, _ = _chain("net.a", "net.b", "net.c", "net.d")
    assert named.names([[0, 1], [2, 3]]) == ("net", ["net.a-b", "net.c-d"])


def test_copies_that_no_path_tells_apart_are_numbered() -> None:
    named, _ = _chain("net", "net", "", "")
    assert named.names([[0], [1]]) == ("net", ["net#0", "net#1"])
    assert named.names([[2], [3]]) == ("repeat_1", ["repeat_1#0", "repeat_1#1"])


def test_no_name_is_given_twice() -> None:
    named, _ = _chain("net.0", "net.1", "net.2")
    assert named.names([[0], [1]]) == ("net", ["net.0", "net.1"])
    assert named.names([[0], [1]]) == ("net.repeat_1", ["net.repeat_1#0", "net.repeat_1#1"])
    assert named.similar([[1], [2]]) == ("similar_1", ["net.1#similar_1", "net.2"])


def test_the_module_of_a_block_is_the_one_that_computes_all_of_it() -> None:
    named, nodes = _chain("net.0.up", "net.0.up", "net.0", "net.1.up")
    assert named.module_of("net.0.up", nodes[:2]) == "net.0.up"
    # Convolutions name the block, and the addition behind them stands in the module around.
    assert named.module_of("net.0.up", nodes[:3]) == "net.0"
    assert named.module_of("net.0", nodes[:2]) is None
    assert named.module_of("net.0", nodes) == "net"
    assert named.module_of("net.2", nodes[3:]) is None


class _SharesItsActivation(nn.Module):
    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.up, self.down, self.act = nn.Linear(4, 8), nn.Linear(8, 4), act

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = x + self.down(self.act(self.up(x)))
        return made


def test_blocks_that_share_a_module_have_their_own_names() -> None:
    act = nn.SiLU()
    model = nn.Sequential(nn.Sequential(*(_SharesItsActivation(act) for _ in range(4))))
    (repeat,) = repl_fx.find_repeats(repl_fx.capture(model, (torch.randn(2, 4),)))
    assert [(block.name, block.module_path) for block in repeat.blocks] == [(f"0.{i}", f"0.{i}") for i in range(4)]

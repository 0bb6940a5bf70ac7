"""Blocks and repeats: their sizes, and how they print."""

from __future__ import annotations

from dataclasses import replace

from repl_fx.finding.blocks import Block, Repeat
from tests.graphs import Graph


def _block(name: str) -> Block:
    graph = Graph()
    x = graph.input()
    y = graph.linear(x)
    return Block(name, (y,), (x,), (y,), (), (), (f"{name}.weight", f"{name}.bias"), name, {id(name): 72})


def test_a_block_prints_its_boundary_and_parameters() -> None:
    block = _block("net.0")
    assert str(block) == "net.0 (1 nodes, 72 parameters)"
    assert block.details().splitlines() == [
        str(block),
        "  inputs       x",
        "  outputs      layer_0",
        "  net.0.weight",
        "  net.0.bias",
    ]
    assert "side inputs  x" in replace(block, side_inputs=block.inputs).details()


def test_shared_parameters_count_once() -> None:
    blocks = tuple(_block(f"net.{i}") for i in range(3))
    tied = replace(blocks[2], sizes=blocks[0].sizes)
    assert [Repeat("net", some).size for some in (blocks, (*blocks[:2], tied), (blocks[0], tied))] == [216, 144, 72]


def test_a_repeat_prints_its_blocks_and_those_inside() -> None:
    inner = Repeat("net.0", (_block("net.0.a"), _block("net.0.b")))
    repeat = Repeat("net", (_block("net.0"), _block("net.1")), (inner,), similar=True)
    assert str(repeat) == "net: 2 similar x 1 nodes, 144 parameters"
    lines = repeat.details().splitlines()
    assert lines[:3] == [str(repeat), f"  {repeat.blocks[0]}", f"  {repeat.blocks[1]}"]
    assert lines[3:] == [f"  inside: {line}" for line in inner.details().splitlines()]

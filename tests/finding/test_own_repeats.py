"""Repeats that the user makes: those that are found where they are the same, refused where something does not hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import repl_fx
from repl_fx import Repeat, repeat_of
from repl_fx.finding.own_repeats import described, own_repeat
from tests.nets import MlpBlock, TokenNet, tokens


class Layers(nn.Module):
    """Blocks in a row, in the order that is given, with what each takes besides."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Skipping(Layers):
    """Each block takes a value of its own besides the stream."""

    def forward(self, x: Tensor) -> Tensor:
        skips = [x * i for i in range(len(self.layers))]
        for layer, skip in zip(self.layers, skips, strict=True):
            x = layer(x + skip) if skip is skips[0] else layer[0](x) + layer[1](skip)  # type: ignore[index]
        return x


class Pair(nn.Module):
    """Two values leave it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x + self.one(y), y + self.two(x)


class Pairs(Layers):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        for layer in self.layers:
            x, y = layer(x, y)
        return x + y


def graph_of(model: nn.Module, width: int = 4) -> fx.GraphModule:
    return repl_fx.capture(model, (torch.randn(2, width),))


def outline(repeat: Repeat) -> list[tuple[object, ...]]:
    return [(b.name, b.nodes, b.inputs, b.outputs, b.side_inputs, b.side_outputs, b.parameters, b.module_path)
            for b in repeat.blocks]  # fmt: skip


def test_blocks_by_pattern_path_and_node_are_those_that_are_found() -> None:
    gm = repl_fx.capture(TokenNet(), (tokens(),))
    (found,) = repl_fx.find_repeats(gm)
    paths = [block.name for block in found.blocks]
    for given in (f"{found.name}.*", paths, paths[::-1]):
        own = repeat_of(gm, given)
        assert outline(own) == outline(found) and (own.name, own.similar, own.shared) == (found.name, False, False)
        assert own.own and not found.own
    nodes = repeat_of(gm, [block.nodes for block in found.blocks])
    names = repeat_of(gm, [[node.name for node in block.nodes] for block in found.blocks])
    assert outline(nodes) == outline(names) == outline(found)


def test_several_layers_are_one_block() -> None:
    gm = graph_of(Layers(*(MlpBlock(4) for _ in range(6))))
    own = repeat_of(gm, [[f"layers.{i}", f"layers.{i + 1}"] for i in range(0, 6, 2)], name="pairs")
    assert [block.name for block in own.blocks] == ["layers.0-1", "layers.2-3", "layers.4-5"]
    assert own.name == "pairs" and own.blocks[1].inputs == own.blocks[0].outputs and not own.similar
    assert outline(own_repeat(gm, described(own))) == outline(own)


def test_blocks_that_are_not_back_to_back_are_similar() -> None:
    gm = graph_of(Layers(MlpBlock(4), nn.Tanh(), MlpBlock(4), nn.Sigmoid(), MlpBlock(4)))
    own = repeat_of(gm, "layers.[024]")
    assert own.similar and [block.name for block in own.blocks] == ["layers.0", "layers.2", "layers.4"]
    assert [block.input.name for block in own.blocks[1:]] == ["layers_1", "layers_3"]


def test_a_pattern_stands_for_one_step_of_a_path() -> None:
    gm = graph_of(Layers(*(MlpBlock(4) for _ in range(3))))
    assert len(repeat_of(gm, "*.*")) == 3
    assert [block.name for block in repeat_of(gm, "layers.*.fc1").blocks] == [f"layers.{i}.fc1" for i in range(3)]


@pytest.mark.parametrize(
    ("model", "blocks", "message"),
    [
        (Layers(MlpBlock(4), MlpBlock(4)), ["layers.0"], "takes two blocks or more"),
        (Layers(MlpBlock(4), MlpBlock(4)), "layer.*", "'layer.*' matches no module that computes anything"),
        (Layers(MlpBlock(4), MlpBlock(4)), "layers.1", "'layers.1' matches layers.1 alone"),
        (Layers(MlpBlock(4), MlpBlock(4)), ["layers.0", "layers.2"], "no module 'layers.2' .* did you mean layers.1"),
        (Layers(MlpBlock(4), MlpBlock(4)), ["layers.0", 3], "a block is a module path or .* this is an int"),
        (Layers(MlpBlock(4), MlpBlock(4)), ["layers.0", []], "a block of no nodes"),
        (Layers(MlpBlock(4), MlpBlock(4)), ["layers.0", ["ad"]], "ad is no node of the graph, and no module"),
        (
            Layers(MlpBlock(4), MlpBlock(4)),
            ["layers.0", "layers.0.fc1"],
            "and layers.0.fc1 share layers_0_fc1",
        ),
        (
            Layers(MlpBlock(4), nn.Linear(4, 6), MlpBlock(6)),
            ["layers.0", "layers.2"],
            r"layers.2 is no copy of layers.0: it has layers_2_norm \(LayerNorm on \(6,\), \(6,\) .* where the other",
        ),
        (
            Layers(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Tanh())),
            "layers.*",
            "layers.1 is no copy of layers.0: it has 3 nodes and the other 2",
        ),
        (
            Skipping(*(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(3))),
            ["layers.1", "layers.2"],
            "layers.1 and those like it are no blocks: 2 values leave it: layers_1_0, layers_1_1; a block hands on one",
        ),
        (Pairs(Pair(), Pair(), Pair()), "layers.*", "layers.0 and those like it are no blocks: 2 values leave it"),
    ],
)
def test_what_does_not_hold_is_said(model: nn.Module, blocks: Any, message: str) -> None:
    with pytest.raises(repl_fx.BadInput, match=message):
        repeat_of(graph_of(model), blocks)


def test_nodes_of_another_graph_are_refused() -> None:
    model = Layers(MlpBlock(4), MlpBlock(4))
    (found,) = repl_fx.find_repeats(graph_of(model))
    with pytest.raises(repl_fx.BadInput, match="layers_0_norm is of another graph"):
        repeat_of(graph_of(Layers(MlpBlock(4), MlpBlock(4))), [block.nodes for block in found.blocks])
    with pytest.raises(repl_fx.BadInput, match="repeat_of takes a graph, and Layers is a model; capture it first"):
        repeat_of(model, "layers.*")  # type: ignore[arg-type]


def without(nodes: Sequence[fx.Node], word: str) -> list[fx.Node]:
    return [node for node in nodes if word not in node.name]


def test_a_block_that_leaves_out_its_middle_is_refused() -> None:
    gm = graph_of(Layers(*(MlpBlock(4) for _ in range(3))))
    (found,) = repl_fx.find_repeats(gm)
    with pytest.raises(repl_fx.BadInput, match="block 1 leaves out layers_0_fc1, which takes a value of it"):
        repeat_of(gm, [without(block.nodes, "fc1") for block in found.blocks])


def test_a_block_that_takes_two_values_of_its_own_is_refused() -> None:
    gm = graph_of(Skipping(*(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(4))))
    adds = [node for node in gm.graph.nodes if "add" in node.name]
    blocks = [[f"layers.{i}", adds[i].name] for i in range(1, 4)]
    with pytest.raises(repl_fx.BadInput, match="layers_2_1 takes a value from outside that is neither what the block"):
        repeat_of(gm, blocks)


def test_blocks_side_by_side_are_refused() -> None:
    class Beside(Layers):
        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = sum(layer(x) for layer in self.layers)
            return made

    with pytest.raises(repl_fx.BadInput, match=r"layers.0 is no block: it takes no value that the others do not take"):
        repeat_of(graph_of(Beside(nn.Linear(4, 4), nn.Linear(4, 4))), "layers.*")


def test_a_repeat_made_by_hand_is_checked_with_the_plan() -> None:
    gm = graph_of(Layers(*(MlpBlock(4) for _ in range(4)), nn.Linear(4, 4)))
    (found,) = repl_fx.find_repeats(gm)
    plan = repl_fx.make_plan(gm, [Repeat("mine", found.blocks)], surrogate="identity")
    assert [repeat.name for repeat in plan.repeats] == ["mine"]
    half = repeat_of(gm, "layers.*.fc1").blocks[3]
    with pytest.raises(repl_fx.BadInput, match=r"layers.3.fc1 is no copy of layers.0"):
        repl_fx.make_plan(gm, [Repeat("mine", (*found.blocks[:3], half))])
    twice = repeat_of(gm, "layers.[01]"), replace(repeat_of(gm, "layers.[12]"), name="other")
    with pytest.raises(repl_fx.BadInput, match=r"block layers.1 is in layers and in other; leave out one of them"):
        repl_fx.make_plan(gm, twice)

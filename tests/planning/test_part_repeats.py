"""Blocks of a part are named as they are in the model, and worked on as they are in the graph."""

from __future__ import annotations

import repl_fx
from repl_fx.planning.part_repeats import PartRepeats
from tests.captures import captured_graph
from tests.nets import TokenNet, tokens


def test_names_begin_with_the_path_of_the_part() -> None:
    gm = captured_graph(TokenNet(depth=4), (tokens(),))
    found = repl_fx.find_repeats(gm)
    part = PartRepeats.of("text.encoder", gm, found)
    (repeat,) = part.repeats
    assert repeat.name == "text.encoder.blocks"
    assert [block.module_path for block in repeat.blocks] == [f"text.encoder.blocks.{i}" for i in range(4)]
    assert all(path.startswith("text.encoder.blocks.") for block in repeat.blocks for path in block.parameters)
    assert list(part.blocks) == [block.name for block in repeat.blocks]
    assert tuple(part.blocks.values()) == found[0].blocks
    assert all(child.name.startswith("text.encoder.") for child in repeat.children)


def test_a_whole_model_has_no_prefix() -> None:
    gm = captured_graph(TokenNet(depth=4), (tokens(),))
    part = PartRepeats.of("", gm, repl_fx.find_repeats(gm))
    assert part.repeats == part.inside and list(part.blocks) == [f"blocks.{i}" for i in range(4)]

"""Blocks of a part are named as they are in the model, and worked on as they are in the graph; the text of a model."""

from __future__ import annotations

import torch
from torch import fx, nn

import repl_fx
from repl_fx.tracing.parts.part_repeats import PartRepeats, lines_made, structure_of
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


def _part(layer: nn.Module) -> PartRepeats:
    return PartRepeats.of("body", fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), layer)), ())


def test_a_whole_model_is_the_text_of_its_graph() -> None:
    part = _part(nn.ReLU())
    assert structure_of((part,), None) == part.lines
    assert structure_of((_part(nn.Tanh()),), None) != part.lines


def test_parts_stand_under_their_path_and_the_model_around_them() -> None:
    part = _part(nn.ReLU())
    around = nn.ModuleDict({"body": nn.Identity(), "head": nn.Dropout(0.25)})
    lines = structure_of((part,), around)
    inside = [line for line in lines if line.startswith("body: ")]
    assert inside == [f"body: {line}" for line in part.lines]
    assert any("head" in line and "p=0.25" in line for line in lines)
    assert not any("Identity" in line for line in lines)


def _made(rate: float, dtype: torch.dtype) -> tuple[str, ...]:
    module = nn.Sequential(nn.Dropout(rate))
    vars(module)["tables"] = (torch.ones(2, dtype=dtype),)
    return lines_made(module)


def test_the_text_of_what_was_made_is_without_precision() -> None:
    made = _made(0.25, torch.float32)
    assert made == _made(0.25, torch.bfloat16)
    assert made != _made(0.5, torch.float32) and made != _made(0.25, torch.int64)
    # A trainer turns off what is off.
    assert _made(0, torch.float32) == _made(0.0, torch.float32) != made

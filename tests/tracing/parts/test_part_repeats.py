"""Blocks of a part are named as they are in the model, and worked on as they are in the graph; the text of a model."""

from __future__ import annotations

import torch
from torch import fx, nn

import repl_fx
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.tracing.parts.capture_parts import CapturedParts, Part
from repl_fx.tracing.parts.part_repeats import ModelRepeats, PartRepeats, find_in_parts, lines_made
from tests.nets import TokenNet, tokens


def test_names_begin_with_the_path_of_the_part() -> None:
    gm = repl_fx.capture(TokenNet(depth=4), (tokens(),))
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
    gm = repl_fx.capture(TokenNet(depth=4), (tokens(),))
    part = PartRepeats.of("", gm, repl_fx.find_repeats(gm))
    assert part.repeats == part.inside and list(part.blocks) == [f"blocks.{i}" for i in range(4)]


def _found(layer: nn.Module, path: str, source: nn.Module) -> ModelRepeats:
    gm = fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), layer))
    captured = CapturedParts(source, source, (Part(path, gm, ExampleInputs()),), ExampleInputs())
    return find_in_parts(captured, lambda part: ())


def test_a_whole_model_is_the_text_of_its_graph() -> None:
    found = _found(nn.ReLU(), "", nn.Identity())
    (part,) = found
    assert found.structure() == found.structure(["other"]) == part.lines
    assert _found(nn.Tanh(), "", nn.Identity()).structure() != part.lines


def test_parts_stand_under_their_path_and_the_model_around_them() -> None:
    found = _found(nn.ReLU(), "body", nn.ModuleDict({"body": nn.Identity(), "head": nn.Dropout(0.25)}))
    (part,), lines = found, found.structure(["body"])
    inside = [line for line in lines if line.startswith("body: ")]
    assert inside == [f"body: {line}" for line in part.lines]
    assert any("head" in line and "p=0.25" in line for line in lines)
    assert not any("Identity" in line for line in lines)


def _made(rate: float, dtype: torch.dtype) -> tuple[str, ...]:
    module = nn.Sequential(nn.Dropout(rate), nn.Softmax())
    vars(module[1])["dim"] = (torch.ones(2, dtype=dtype),)
    return lines_made(module)


def test_the_text_of_what_was_made_is_without_precision() -> None:
    made = _made(0.25, torch.float32)
    assert made == _made(0.25, torch.bfloat16)
    assert made != _made(0.5, torch.float32) and made != _made(0.25, torch.int64)
    # A trainer turns off what is off.
    assert _made(0, torch.float32) == _made(0.0, torch.float32) != made

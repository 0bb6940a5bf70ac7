"""The text of a model: its graphs, and what stays Python around them."""

from __future__ import annotations

import torch
from torch import fx, nn

from repl_fx.planning.part_repeats import PartRepeats
from repl_fx.planning.structure import lines_made, structure_of


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

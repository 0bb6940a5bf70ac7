"""The values at the boundaries of blocks, and the dropout and the numbers that belong to a block."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repl_fx._torch import module_stack
from repl_fx.finding.find_repeats import find_repeats
from repl_fx.pipeline import transform
from repl_fx.tracing.capture import capture
from tests.graphs import Graph, shape_of


def test_side_input_is_shared_by_all_blocks() -> None:
    graph = Graph()
    given = graph.input()
    mask = graph.call(torch.sigmoid, given)
    x = graph.linear(given)
    for _ in range(4):
        y = graph.call(operator.mul, graph.linear(x), mask)
        x = graph.call(operator.add, x, y)
    (repeat,) = find_repeats(graph.done(x))
    assert shape_of((repeat,)) == [(4, 3)]
    assert all(block.side_inputs == (mask,) for block in repeat.blocks)


def test_value_used_after_the_repeat_is_an_output_of_its_block() -> None:
    graph = Graph()
    x = graph.linear(graph.input())
    inner = []
    for _ in range(3):
        y = graph.call(torch.relu, graph.linear(x))
        inner.append(y)
        x = graph.call(operator.add, x, y)
    (repeat,) = find_repeats(graph.done(graph.call(operator.mul, x, inner[1])))
    assert [len(block.side_outputs) for block in repeat.blocks] == [0, 1, 0]
    assert repeat.blocks[1].side_outputs == (inner[1],)


class SometimesDropped(nn.Module):
    """Residual layers with dropout that the first lacks, as where a rate grows from 0 with depth."""

    def __init__(self, depth: int, *, behind: bool) -> None:
        super().__init__()
        self.behind = behind
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(depth))
        self.drops = nn.ModuleList(nn.Dropout(0.1 * i) for i in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for number, (layer, drop) in enumerate(zip(self.layers, self.drops, strict=True)):
            if self.behind:
                x = x + F.relu(layer(x))
                x = drop(x) if number else x
            else:
                x = x + F.relu(layer(drop(x) if number else x))
        return x


@pytest.mark.parametrize("behind", [True, False])
def test_dropout_that_one_block_lacks_makes_no_difference(behind: bool) -> None:
    gm = capture(SometimesDropped(4, behind=behind), (torch.randn(3, 8),))
    (repeat,) = find_repeats(gm)
    assert [len(block.nodes) for block in repeat.blocks] == [3, 4, 4, 4]
    for number, block in enumerate(repeat.blocks[1:], start=1):
        assert block.nodes[-1].target == f"drops.{number}"
        assert block.input is repeat.blocks[number - 1].output
        assert block.side_outputs == ()
    assert repeat.blocks[-1].output.users.keys() == {gm.graph.output_node()}


class _Looks(nn.Module):
    """A residual layer that clamps when it must, in both modes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.fc(x)
        if (x.abs() > 4).any():
            x = x.clamp(-4, 4)
        return x


@pytest.mark.slow
def test_what_a_block_asks_about_its_own_values_is_the_block_s() -> None:
    x = torch.randn(2, 8)
    gm = capture(nn.Sequential(*(_Looks() for _ in range(3))), (x,))
    (repeat,) = find_repeats(gm)
    assert [len(block.side_outputs) for block in repeat.blocks] == [0, 0, 0]
    result = transform(gm, (x,), surrogate="identity")
    assert len(result.plan.replacements) == 1


class _Padded(nn.Module):
    """A block that begins with an Identity, as those of EfficientNet do, and adds what it was given or not."""

    def __init__(self, adds: bool) -> None:
        super().__init__()
        self.pad, self.conv, self.adds = nn.Identity(), nn.Conv1d(4, 4, 3, padding=1), adds

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.conv(self.pad(x)).relu()
        return x + made if self.adds else made


def test_an_identity_in_another_module_is_not_the_block_s() -> None:
    model = nn.Sequential(*(_Padded(adds=number != 3) for number in range(5)))
    result = transform(model, (torch.randn(2, 4, 6),), surrogate="identity", blocks=["1"])
    repeat = result.repeats[0]
    assert [(block.name, block.module_path) for block in repeat.blocks] == [(name, name) for name in "012"]
    assert all(module_stack(node)[0] == block.name for block in repeat.blocks for node in block.nodes)
    assert result.in_place.model is not None

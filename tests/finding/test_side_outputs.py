"""Tests for repl_fx.finding.side_outputs: values of a block that the model returns besides its result."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.finding.side_outputs import only_returned

WIDTH = 8


class Layer(nn.Module):
    """A residual layer that also returns what it has inside."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, WIDTH)
        self.down = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        inner = torch.relu(self.up(x))
        return x + self.down(inner), inner


class Result:
    """An object that pytree knows nothing of."""

    def __init__(self, x: Tensor, values: tuple[Tensor, ...] = ()) -> None:
        self.x = x
        self.values = values


class Stack(nn.Module):
    """Returns the inner values in evaluation mode alone, or uses them."""

    def __init__(self, used: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(4))
        self.used = used

    def forward(self, x: Tensor) -> Any:
        values = []
        for layer in self.layers:
            x, inner = layer(x)
            values.append(inner)
        if self.used:
            return x + values[1]
        return Result(x) if self.training else Result(x, tuple(values))


@pytest.mark.parametrize("used", [False, True])
def test_a_value_that_one_mode_returns_is_only_returned(used: bool) -> None:
    gm = repl_fx.capture(Stack(used), (torch.randn(2, WIDTH),))
    (repeat,) = repl_fx.find_repeats(gm)
    assert len(repeat) == 4
    side_outputs = [(value, block) for block in repeat.blocks for value in block.side_outputs]
    assert len(side_outputs) == (1 if used else 4)
    assert all(only_returned(value, block) is not used for value, block in side_outputs)


def test_a_replaced_layer_returns_none_for_it() -> None:
    x = torch.randn(2, WIDTH)
    gm = repl_fx.transform(Stack(), (x,), surrogate="identity", blocks=["layers.1"]).graph_module
    assert [value is None for value in gm.eval()(x).values] == [False, True, False, False]
    assert gm.train()(x).values == ()

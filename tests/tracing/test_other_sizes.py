"""Graphs that were traced at even sizes, tried at odd ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from repl_fx._torch import FakeTensorMode, ShapeEnv
from repl_fx.errors import BadInput
from repl_fx.graph.captured import CapturedModule
from repl_fx.graph.runtime import check_shape
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.tracing.capture import capture
from repl_fx.tracing.other_sizes import holds_at_other_sizes


class Scales(nn.Module):
    """Scales by a factor that may depend on the number of rows."""

    def __init__(self, factor: Callable[[int], float]) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor(x.shape[0])


def doubling(x: Tensor, *, dynamic: bool) -> CapturedModule:
    """The graph of a network that doubles `x`, traced where the sizes of `x` were free or fixed."""
    graph = fx.Graph()
    given = graph.placeholder("x")
    sizes = FakeTensorMode(shape_env=ShapeEnv() if dynamic else None)
    given.meta["val"] = sizes.from_tensor(x)
    graph.call_function(check_shape, (given, (None,) * x.ndim if dynamic else tuple(x.shape), "argument 'x'"))
    graph.output(graph.call_function(torch.mul, (given, 2.0)))
    return CapturedModule(nn.Module(), graph)


@pytest.mark.parametrize(
    ("factor", "dynamic", "holds"),
    [
        (lambda rows: 2.0, True, True),
        (lambda rows: 2.0 if rows % 2 == 0 else 3.0, True, False),
        # With fixed sizes there are no others.
        (lambda rows: 2.0 if rows % 2 == 0 else 3.0, False, True),
        # A source that does not take other sizes says nothing against its graph.
        (lambda rows: {8: 2.0}[rows], True, True),
    ],
    ids=["any size", "even sizes", "fixed sizes", "one size"],
)
def test_a_graph_that_holds_for_the_sizes_of_its_trace_alone(
    factor: Callable[[int], float], dynamic: bool, holds: bool
) -> None:
    x = torch.randn(8, 6)
    assert holds_at_other_sizes(Scales(factor), doubling(x, dynamic=dynamic), ExampleInputs((x,))) is holds


def test_a_graph_that_fails_at_other_sizes_does_not_hold() -> None:
    x = torch.randn(8, 6)
    gm = doubling(x, dynamic=True)
    check = next(node for node in gm.graph.nodes if node.target is check_shape)
    check.args = (check.args[0], (8, None), "argument 'x'")
    gm.recompile()
    assert not holds_at_other_sizes(Scales(lambda rows: 2.0), gm, ExampleInputs((x,)))


class Counter(nn.Module):
    """Statistics that a batch of one leaves alone, with outputs that do not tell."""

    seen: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Any:
        if x.shape[0] > 1 and self.training:
            self.seen += 1
        return self.fc(x)


@pytest.mark.parametrize("width", [8, 512])
def test_a_check_that_guards_changes_of_buffers_alone_is_kept(width: int) -> None:
    model = Counter(width)
    gm = capture(model, (torch.randn(3, 2, width),))
    with pytest.raises(BadInput, match=r"x\.shape\[0\] > 1"):
        gm(torch.randn(1, 2, width))
    assert gm(torch.randn(2, 2, width)).shape == (2, 2, width)
    assert model.seen.item() == 1

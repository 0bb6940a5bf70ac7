"""Tests for repl_fx.tracing.eager_path: a model that asks whether it is exported."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import repl_fx


class Asks(nn.Module):
    """Computes otherwise when it is exported; by its length, it may do so when it is not."""

    def __init__(self, longest: int | None = None) -> None:
        super().__init__()
        self.longest = longest
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        if not torch.compiler.is_exporting() and (self.longest is None or x.shape[1] < self.longest):
            return x * 2
        return x * 2 + torch.zeros_like(x)


def test_the_graph_is_of_the_way_that_the_model_runs() -> None:
    gm = repl_fx.capture(Asks(), (torch.randn(2, 3, 4),))
    assert not any("zeros_like" in node.name for node in gm.graph.nodes)


def test_a_way_for_short_inputs_alone_is_not_taken() -> None:
    gm = repl_fx.capture(Asks(longest=8), (torch.randn(2, 3, 4),))
    assert any("zeros_like" in node.name for node in gm.graph.nodes)
    assert gm.meta["capture"].dynamic == {"x": (0, 1)}


def test_torch_answers_as_before_afterwards() -> None:
    own = torch.compiler.is_exporting
    repl_fx.capture(Asks(), (torch.randn(2, 3, 4),))
    assert torch.compiler.is_exporting is own

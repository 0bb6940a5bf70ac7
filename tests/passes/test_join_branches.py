"""Tests for repl_fx.passes.join_branches: traces with different answers become one graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.decisions import is_choice, is_decision, is_random


class Skips(nn.Module):
    """Skips layers at random in training, and a last one by what it computed, in both modes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            skip = self.training and torch.rand([]) < 0.5
            if not skip:
                x = layer(x)
                # A size that the first layer which runs computes, for all.
                x = x.reshape(x.shape[0] * 2, 2).reshape(-1, 4)
            if skip:
                continue
        if (x > 3).any():
            x = x.clamp(max=3)
        return x


def test_one_graph_decides_as_the_source_does() -> None:
    torch.manual_seed(0)
    model = Skips()
    gm = repl_fx.capture(model, (torch.randn(3, 4),))
    decisions = [node for node in gm.graph.nodes if is_decision(node)]
    assert [is_random(node) for node in decisions] == [True, True, True, False]
    assert sum(is_choice(node) for node in gm.graph.nodes) == 4
    for seed in range(8):
        for scale in (1.0, 50.0):
            x = torch.randn(5, 4) * scale
            torch.manual_seed(seed)
            wanted = model(x)
            torch.manual_seed(seed)
            assert torch.equal(gm(x), wanted)
    model.eval()
    gm.eval()
    assert torch.equal(gm(x), model(x))


class Swaps(nn.Module):
    """Computes one thing or another."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sin() if x.sum() > 0 else x.cos()


def test_a_choice_between_two_computations_is_refused() -> None:
    with pytest.raises(repl_fx.CaptureError, match="a decision does more than skip a layer"):
        repl_fx.capture(Swaps(), (torch.randn(3, 4),))

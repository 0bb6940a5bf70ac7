"""Sizes that mean the number of positions; tests/surrogates/test_coarse.py has other sizes that are as many."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import repl_fx
from tests.nets import Attention, rewritten, tokens


class Times16(nn.Module):
    """x + 16 attention(norm(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(8), Attention(8, 2, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.attn(self.norm(x)) * 16
        return out


class Fixed(nn.Module):
    """Blocks on a sequence of fixed length, as positions of its own make it."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, length, 8))
        self.blocks = nn.Sequential(*(Times16() for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(x + self.positions)
        return out


@pytest.mark.slow
def test_a_number_that_equals_the_positions_is_refused_where_it_is_calculated_with() -> None:
    with pytest.raises(repl_fx.NothingToReplace, match="calculates with 16, which is the number of positions too"):
        rewritten(Fixed(16), tokens(length=16, width=8), "coarse")
    x = tokens(length=17, width=8)
    assert rewritten(Fixed(17), x, "coarse").graph_module(x).shape == x.shape

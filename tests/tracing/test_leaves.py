"""Code that names the training mode or a random draw, in a class or in a function that it calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repl_fx.tracing.leaves import may_vary


def draws(x: Tensor) -> Tensor:
    return x + torch.randn_like(x)


def calls_what_draws(x: Tensor) -> Tensor:
    return draws(x) * 2


def computes(x: Tensor) -> Tensor:
    return x.relu()


class Computes(nn.Module):
    """Its constructor may draw: that is no part of the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        return computes(x) * self.weight


class AsksItsMode(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if self.training else x


class DrawsElsewhere(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return calls_what_draws(x)


class DrawsInside(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return sum(part.bernoulli() for part in x.chunk(2))  # type: ignore[return-value]


class Inherits(DrawsInside):
    pass


class Computed(nn.ReLU):
    """The forward of torch is not looked at."""


@pytest.mark.parametrize(
    ("kind", "varies"),
    [
        (Computes, False),
        (Computed, False),
        (AsksItsMode, True),
        (DrawsElsewhere, True),
        (DrawsInside, True),
        (Inherits, True),
    ],
)
def test_the_code_says_whether_a_module_may_vary(kind: Any, varies: bool) -> None:
    assert may_vary(kind) is varies


def test_code_that_cannot_be_seen_may_vary() -> None:
    class Unseen(nn.Module):
        forward = torch.relu

    assert may_vary(Unseen)

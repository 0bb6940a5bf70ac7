"""Hidden units of blocks: what makes them, what reads them, and what is between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import repl_fx
from repl_fx.surrogates.shared.hidden_units import HiddenUnits, find_hidden_units
from repl_fx.surrogates.shared.matching import Matches
from repl_fx.surrogates.shared.site import Unfit
from tests.surrogates.nets import CHANNELS, Residual

PICTURES = torch.randn(2, CHANNELS, 6, 6)


class _Mlp(nn.Module):
    """A block between whose layers something of two hidden values is computed."""

    def __init__(self, between: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.out(self.between(self.a(x), self.b(x)))
        return out


def _found(block: Callable[[], nn.Module], x: Tensor) -> list[HiddenUnits]:
    return _of_middle(nn.Sequential(*(block() for _ in range(3))), x)


def _of_middle(net: nn.Module, x: Tensor) -> list[HiddenUnits]:
    gm = repl_fx.capture(net, (x,))
    repeats = repl_fx.find_repeats(gm)
    before, block, after = repeats[0].blocks
    return find_hidden_units(Matches(gm, repeats).site(block.name, before.name, after.name))


def _names(linears: list[Any]) -> list[str]:
    return [str(one.node.target) for one in linears]


@pytest.mark.parametrize(
    "between",
    [
        lambda a, b: a + 2 * b,
        lambda a, b: F.silu(a) * b,
        lambda a, b: torch.where(a > 0, a, b.exp()),
        lambda a, b: F.dropout(a.pow(2), 0.5) / (1 + b.abs()),
        lambda a, b: (a.reshape(-1, 12).tanh() * b.reshape(-1, 12)).reshape(*a.shape),
    ],
)
def test_whatever_treats_channels_one_by_one_is_between(between: Callable[[Tensor, Tensor], Tensor]) -> None:
    (units,) = _found(lambda: _Mlp(between), torch.randn(2, 3, 8))
    assert _names(units.entries) == ["1.a", "1.b"] and _names(units.readers) == ["1.out"]
    assert (units.axis, units.size) == (-1, 12) and units.between and not units.norms


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (lambda a, b: a.softmax(-1) + b, "does not treat the channels of a hidden layer one by one"),
        (lambda a, b: a.cumsum(-1) + b, "does not treat the channels of a hidden layer one by one"),
        (lambda a, b: b + a / a.mean(), "does not keep the channels"),
        (lambda a, b: a + b.mean(-1, keepdim=True), "does not keep the channels|one by one"),
        (lambda a, b: a.flip(-1) * b, "does not treat the channels of a hidden layer one by one"),
        (lambda a, b: a.unflatten(-1, (3, 4)).relu().flatten(-2) + b, "does not keep the channels|one by one"),
        (lambda a, b: (a.transpose(0, 1) + b.transpose(0, 1)).transpose(0, 1), "one by one"),
        (lambda a, b: a + b * torch.arange(12.0), "one by one|outside of its branches"),
    ],
)
def test_what_mixes_channels_is_refused(between: Callable[[Tensor, Tensor], Tensor], reason: str) -> None:
    with pytest.raises(Unfit, match=reason):
        _found(lambda: _Mlp(between), torch.randn(2, 3, 8))


def test_two_hidden_layers_of_a_block() -> None:
    def block() -> nn.Module:
        return Residual(
            nn.Conv2d(CHANNELS, 8, 1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(12, CHANNELS, 1),
        )

    first, second = _found(block, PICTURES)
    assert (first.size, second.size) == (8, 12) and len(first.norms) == 1 and not second.norms
    assert _names(first.readers) == _names(second.entries) == ["1.inner.3"]


def test_depthwise_convolutions_are_between() -> None:
    def block() -> nn.Module:
        depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        return Residual(nn.Conv2d(CHANNELS, 24, 1), nn.ReLU(), depthwise, nn.Conv2d(24, CHANNELS, 1))

    (units,) = _found(block, PICTURES)
    assert _names(units.depthwise) == ["1.inner.2"] and _names(units.entries) == ["1.inner.0"]


class _Shown(nn.Module):
    """A network that returns hidden values too."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = (nn.ModuleList(nn.Linear(*s) for _ in range(3)) for s in ((8, 12), (12, 8)))

    def forward(self, x: Tensor) -> list[Tensor]:
        shown = []
        for up, down in zip(self.up, self.down, strict=True):
            shown.append(up(x).relu())
            x = x + down(shown[-1])
        return [x, *shown]


def test_units_that_are_seen_outside_stay() -> None:
    with pytest.raises(Unfit, match="outside of its branches"):
        _of_middle(_Shown(), torch.randn(2, 8))

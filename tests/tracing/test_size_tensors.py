"""Tests for repl_fx.tracing.size_tensors: sizes that go through tensors stay sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repl_fx


class Chunks(nn.Module):
    """Views its input in chunks, whose number it computes with tensors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        count = torch.div(x.shape[1], self.width, rounding_mode="trunc")
        more = count * 2 - 1
        chunks = self.layer(x).view(x.shape[0], count, self.width, 8)
        made = chunks.new_zeros((x.shape[0], more + 1, self.width, 8))
        made[:, :count] = chunks
        return made.flatten(1, 2)  # type: ignore[no-any-return]


def test_the_graph_computes_sizes_without_tensors() -> None:
    torch.manual_seed(0)
    model = Chunks(2)
    gm = repl_fx.capture(model, (torch.randn(2, 6, 8),))
    assert gm.meta["capture"].dynamic == {"x": (0, 1)}
    names = {str(node.target) for node in gm.graph.nodes}
    assert not [name for name in names if name.startswith("aten.") and ("div" in name or "item" in name)]
    for length in (6, 10, 4):
        x = torch.randn(3, length, 8)
        assert torch.equal(gm(x), model(x))


class Fills(nn.Module):
    """Makes as many rows as a function of a size says."""

    def __init__(self, rows: Any) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, x: Tensor) -> Tensor:
        return x.sum() + x.new_ones((self.rows(x.shape[0]), 3))


@pytest.mark.parametrize(
    "rows",
    [
        lambda n: torch.div(n, 2, rounding_mode="floor"),
        lambda n: torch.floor_divide(torch.tensor(n), 2),
        lambda n: torch.tensor(n) // 2,
        lambda n: 9 - torch.div(n, 2, rounding_mode="trunc"),
        lambda n: 2 + 3 * torch.tensor(n),
    ],
)
def test_whole_number_arithmetic(rows: Any) -> None:
    model = Fills(rows)
    gm = repl_fx.capture(model, (torch.randn(5, 3),))
    assert gm.meta["capture"].dynamic == {"x": (0, 1)}
    for count in (5, 8):
        x = torch.randn(count, 3)
        assert gm(x).shape == model(x).shape == (int(rows(count)), 3)
        assert torch.equal(gm(x), model(x))


class Counts(nn.Module):
    """A number that was a size and is changed by what the input holds."""

    def forward(self, x: Tensor) -> Tensor:
        count = torch.div(x.shape[0], 2, rounding_mode="trunc")
        count += (x > 0).sum()
        return x.new_ones((count, 3))  # type: ignore[arg-type]


def test_a_number_that_is_changed_in_place_is_not_known_any_more() -> None:
    model = Counts()
    gm = repl_fx.capture(model, (torch.ones(4, 3),))
    for x in (torch.ones(4, 3), -torch.ones(6, 3)):
        assert gm(x).shape == model(x).shape


class Weighs(nn.Module):
    """Asks how many bytes its input has."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.nbytes


def test_the_bytes_of_a_tensor_are_those_of_each_call() -> None:
    gm = repl_fx.capture(Weighs(), (torch.ones(4, 3),))
    assert gm.meta["capture"].dynamic == {"x": (0, 1)}
    for x in (torch.ones(4, 3), torch.ones(5, 2)):
        assert torch.equal(gm(x), x * x.nbytes)


class Pieces(nn.Module):
    """Takes numbers out of tensors that it makes of plain ones."""

    def __init__(self, pieces: Any) -> None:
        super().__init__()
        self.pieces = pieces

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([piece.mean(1) for piece in torch.split(x, self.pieces(), 1)])


def _products() -> list[int]:
    return [int(rows * columns) for rows, columns in torch.tensor([[2, 2], [1, 2]])]


def _written() -> list[int]:
    counted = torch.arange(1, 4)
    counted[0] = 3
    return [*counted.tolist()[:2], 1]


def _written_by_a_view() -> list[int]:
    counted = torch.arange(1, 4)
    first, *_ = counted.unbind(0)
    counted.view(3).add_(1)
    return [int(first), *counted.tolist()[:1], 2]


def _joined() -> list[int]:
    return [int(number) for number in torch.cat((torch.tensor([1, 3]), torch.arange(2, 3)))]


@pytest.mark.parametrize(
    "pieces", [lambda: torch.arange(1, 4).tolist(), _products, _written, _written_by_a_view, _joined]
)
def test_numbers_of_small_tensors_that_a_forward_makes_are_known(pieces: Any) -> None:
    model = Pieces(pieces)
    gm = repl_fx.capture(model, (torch.randn(2, 6, 4),))
    x = torch.randn(3, 6, 4)
    assert torch.equal(gm(x), model(x))

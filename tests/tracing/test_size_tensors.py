"""Tests for repl_fx.tracing.size_tensors: sizes that go through tensors stay sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

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


class Places(nn.Module):
    """Adds the places of the pixels, as models with reference points make them, and turns the picture."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = settings
        self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        rows = torch.linspace(0.5, h - 0.5, h, device=x.device, **self.settings)
        columns = torch.linspace(start=-1, end=1, steps=w, dtype=torch.float64)
        theta = torch.tensor([[0.6, -0.8, 0.1], [0.8, 0.6, 0.0]]).expand(x.shape[0], 2, 3)
        grid = functional.affine_grid(theta, list(x.size()), align_corners=False)
        turned = functional.grid_sample(self.layer(x), grid, align_corners=False)
        return turned + rows[:, None] / h + columns


def test_evenly_spaced_numbers_and_grids_as_many_as_a_size_says() -> None:
    model = Places()
    gm = repl_fx.capture(model, (torch.randn(2, 3, 8, 6),))
    assert gm.meta["capture"].dynamic == {"x": (0, 2, 3)}
    for height, width in ((8, 6), (5, 9), (1, 17)):
        x = torch.randn(3, 3, height, width)
        assert torch.equal(gm(x), model(x))


def test_evenly_spaced_numbers_that_torch_alone_can_make_fix_the_size() -> None:
    gm = repl_fx.capture(Places(requires_grad=True), (torch.randn(2, 3, 8, 6),))
    assert gm.meta["capture"].dynamic == {"x": (0, 3)}


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


@pytest.mark.parametrize("pieces", [lambda: torch.arange(1, 4).tolist(), _products, _written])
def test_numbers_of_small_tensors_that_a_forward_makes_are_known(pieces: Any) -> None:
    model = Pieces(pieces)
    gm = repl_fx.capture(model, (torch.randn(2, 6, 4),))
    x = torch.randn(3, 6, 4)
    assert torch.equal(gm(x), model(x))

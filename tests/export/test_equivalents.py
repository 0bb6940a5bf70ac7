"""Tests for repl_fx.export.equivalents: functions compute what the originals compute, at all sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import repl_fx
from repl_fx.export.equivalents import (
    affine_grid,
    attention,
    bucketed,
    evenly_spaced,
    grouped_matmul,
    pieces,
    searched,
    subtracted_from,
)
from tests.exporting import Exported


def test_a_subtraction_from_a_number() -> None:
    x = torch.randn(3)
    assert torch.equal(subtracted_from(x, 1.5), torch.rsub(x, 1.5))
    assert torch.equal(subtracted_from(x, 1.5, 2), torch.rsub(x, 1.5, alpha=2))


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 100])
@pytest.mark.parametrize("dtype", [None, torch.float64, torch.float16])
def test_evenly_spaced_numbers(steps: int, dtype: torch.dtype | None) -> None:
    for start, end in ((0, 1), (0.5, steps - 0.5), (3, -7)):
        wanted = torch.linspace(start, end, steps, dtype=dtype)
        # Torch 2.11 counts in half precision.
        far = 4e-3 if dtype is torch.float16 else 3e-7
        torch.testing.assert_close(evenly_spaced(start, end, steps, dtype=dtype), wanted, rtol=far, atol=far)


@pytest.mark.parametrize("size", [(2, 3, 5, 8), (2, 3, 2, 4), (2, 1, 3, 4, 5)])
@pytest.mark.parametrize("align_corners", [True, False])
def test_grids_of_affine_maps(size: tuple[int, ...], align_corners: bool) -> None:
    theta = torch.randn(2, len(size) - 2, len(size) - 1)
    wanted = F.affine_grid(theta, list(size), align_corners=align_corners)
    torch.testing.assert_close(affine_grid(theta, size, align_corners), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("right", [True, False])
def test_values_are_searched_for(right: bool) -> None:
    values = torch.tensor([[0.5, 1.0, torch.nan], [-9.0, 3.0, 2.0]])
    boundaries = torch.tensor([0.5, 1.0, 2.0, 2.0])
    wanted = torch.bucketize(values, boundaries, right=right, out_int32=True)
    assert torch.equal(bucketed(values, boundaries, right=right, out_int32=True), wanted)
    rows = torch.stack([boundaries, boundaries.flip(0)])
    order, side = rows.argsort(-1), "right" if right else "left"
    wanted = torch.searchsorted(rows, values, side=side, sorter=order)
    found = searched(rows, values, side=side, sorter=order)
    assert torch.equal(found, wanted) and found.dtype == wanted.dtype


COUNTED: dict[str, Callable[[Tensor], Tensor]] = {
    "buckets": lambda x: torch.bucketize(x, torch.linspace(-2, 2, x.shape[1])),
    "drawn": lambda x: torch.searchsorted(x.softmax(-1).cumsum(-1), x.sigmoid()),
    "repeated": lambda x: x.repeat_interleave(x.shape[1], 0),
    "windows": lambda x: x[:, :8] * torch.hamming_window(8) + torch.kaiser_window(8),
}


class _Applied(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize("name", COUNTED)
def test_what_the_exporter_counts_by_the_example_or_otherwise_is_right(name: str, tmp_path: Path) -> None:
    x = torch.randn(2, 11, generator=torch.Generator().manual_seed(0))
    exported = Exported(repl_fx.capture(_Applied(COUNTED[name]), (x,)), tmp_path / "m.onnx", (x,))
    check = exported.verify((x.repeat(3, 4),))
    assert check and not check.skipped, check.summary()


def test_functions_of_sizes_are_exported_with_free_sizes(tmp_path: Path) -> None:
    class Turned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            theta = x.mean((1, 2, 3)).view(-1, 1, 1) * torch.eye(2, 3)
            grid = F.affine_grid(theta, list(x.size()), align_corners=False)
            turned = F.grid_sample(x, grid, align_corners=False)
            pooled = F.avg_pool2d(x, x.shape[2:]) + F.max_pool1d(x.flatten(2), x.flatten(2).shape[2])[..., None]
            return turned + torch.linspace(0.5, x.shape[2] - 0.5, x.shape[2])[:, None] + pooled

    exported = Exported(repl_fx.capture(Turned(), (x := torch.randn(2, 3, 5, 4),)), tmp_path / "m.onnx", (x,))
    check = exported.verify((torch.randn(3, 3, 7, 6),))
    assert check and not check.skipped


class _Quantiser(nn.Module):
    """Distances to a codebook, and the nearest entry, as in a VQ-VAE."""

    def __init__(self, p: float, codes: int) -> None:
        super().__init__()
        self.codes, self.p = nn.Parameter(torch.randn(codes, 6)), p

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        apart = torch.cdist(x, self.codes[None], p=self.p)
        return apart, self.codes[apart.argmin(-1)]


@pytest.mark.parametrize(("p", "codes"), [(2, 5), (2, 40), (1, 5), (0, 5), (math.inf, 5), (3, 30)])
def test_distances_are_exported(p: float, codes: int, tmp_path: Path) -> None:
    x = torch.randn(2, 7, 6)
    check = Exported(repl_fx.capture(_Quantiser(p, codes), (x,)), tmp_path / "net.onnx", (x,)).verify()
    assert check, check.summary()


def test_tensors_of_several_dtypes(tmp_path: Path) -> None:
    class Mixed(nn.Module):
        def forward(self, x: Tensor, codes: Tensor) -> tuple[Tensor, ...]:
            both = (x, codes)
            stacked = torch.stack(both, 1), torch.hstack(both), torch.vstack(both), torch.dstack(both)
            return *stacked, torch.column_stack([codes, codes.int(), x > 0]), codes**x

    given = torch.randn(2, 3), torch.randint(0, 5, (2, 3))
    assert Exported(repl_fx.capture(Mixed(), given), tmp_path / "m.onnx", given).verify()


def test_clamps_between_a_whole_and_a_floating_bound(tmp_path: Path) -> None:
    class Clamps(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            written = (x * 2).clamp_(-0.5, max=1)
            return x.clamp(-1, 0.5), written, x.long().clamp(-1, 0.5), x.clamp(0, x.shape[1] - 2.5)

    exported = Exported(repl_fx.capture(Clamps(), (x := torch.randn(2, 3) * 3,)), tmp_path / "m.onnx", (x,))
    check = exported.verify()
    assert check and {row.sizes for row in check.rows} == {"", "length 2", "length 4"}


@pytest.mark.parametrize("lead", [(3,), (2, 3, 2)])
def test_attention_of_other_ranks(lead: tuple[int, ...]) -> None:
    q, k, v = (torch.randn(*lead, 5, 4) for _ in range(3))
    mask = torch.randn(1, 5, 5) if len(lead) == 1 else torch.randn(2, 1, 1, 5, 5)
    wanted = nn.functional.scaled_dot_product_attention(q, k, v, mask)
    torch.testing.assert_close(attention(q, k, v, mask), wanted, rtol=0, atol=1e-6)


def test_a_matrix_for_each_group_of_rows() -> None:
    rows, weights, ends = torch.randn(6, 3), torch.randn(3, 3, 2), torch.tensor([2, 2, 6])
    wanted = torch.cat([rows[:2] @ weights[0], rows[2:] @ weights[2]])
    torch.testing.assert_close(grouped_matmul(rows, weights, ends), wanted, rtol=0, atol=1e-6)


class Pairs(nn.Module):
    """Runs both of a pair in one batch, as siamese networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(4, 3)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        a, b = torch.chunk(self.encode(torch.cat([first, second])), 2)
        return a - 2 * b


def test_chunks_of_a_batch_of_any_size(tmp_path: Path) -> None:
    x = torch.arange(14.0).reshape(2, 7)
    for made, wanted in (
        (pieces(x, 3, 1, count=3, equal=True), x.chunk(3, 1)),
        (pieces(x, 2, 1, count=4, equal=False), x.split(2, 1)),  # type: ignore[no-untyped-call]
    ):
        assert [piece.tolist() for piece in made] == [piece.tolist() for piece in wanted]
    pair = (torch.randn(2, 4), torch.randn(2, 4))
    gm = repl_fx.capture(Pairs(), pair)
    assert Exported(gm, tmp_path / "pairs.onnx", pair).verify()


class Scaled(nn.Module):
    """A layer whose results are divided by a size that is made a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = self.fc(x) / torch.sqrt(torch.tensor(x.shape[1], dtype=torch.float))
        return scaled


def test_a_size_that_is_made_a_tensor(tmp_path: Path) -> None:
    model, x = Scaled().eval(), torch.randn(2, 5, 8)
    file = Exported(repl_fx.capture(model, (x,)), tmp_path / "scaled.onnx", (x,))
    assert file.verify((torch.randn(3, 7, 8),))


class Strided(nn.Module):
    """Overlapping windows of a transposed tensor, by its memory, as Longformer takes them."""

    def forward(self, x: Tensor) -> Tensor:
        size, stride = list(x.transpose(0, 1).shape), list(x.transpose(0, 1).stride())
        size[0] -= 1
        return x.transpose(0, 1).as_strided(size, stride) + 1


@pytest.mark.slow
def test_memory_of_a_transposed_tensor(tmp_path: Path) -> None:
    x = torch.randn(3, 4, 5)
    gm = repl_fx.capture(Strided(), (x,))
    assert torch.equal(gm(x), x.transpose(0, 1)[:-1] + 1)
    assert Exported(gm, tmp_path / "strided.onnx", (x,)).verify()


class Flat(nn.Module):
    """Attention of a batch without heads."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.mask = nn.Parameter(torch.randn(5, 5))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return nn.functional.scaled_dot_product_attention(q, k, v, self.mask)


class Attention(nn.Module):
    """Attention of the given number of dimensions before positions and features, with a mask that broadcasts."""

    def __init__(self, lead: tuple[int, ...], masked: bool) -> None:
        super().__init__()
        self.qkv, self.lead = nn.Linear(8, 24), lead
        self.mask = nn.Parameter(torch.randn(lead[-1], 5, 5)) if masked else None

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(-1, *self.lead, 5, 24).chunk(3, -1)
        return nn.functional.scaled_dot_product_attention(q, k, v, self.mask, scale=0.3)


@pytest.mark.parametrize(("lead", "masked"), [((), False), ((2, 3), True), ((2, 3), False), ((3,), True)])
def test_attention_of_any_rank_is_exported_with_a_dynamic_batch(
    lead: tuple[int, ...], masked: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = Attention(lead, masked) if lead else Flat()
    x = torch.randn(2, *lead, 5, 8)
    gm = repl_fx.capture(model, (x,))
    check = Exported(gm, tmp_path / "model.onnx", (x,)).verify()
    assert check, check.summary()
    assert {row.batch for row in check.rows} == {1, 2, 5}

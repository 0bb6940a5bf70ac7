"""Maps of least cosine distance, and the rows they are fitted on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from repl_fx.fitting.cosine import Reservoir, solve_cosine
from repl_fx.fitting.solving import Moments, Solution, solve


def _kept(*columns: Tensor) -> Reservoir:
    rows = Reservoir()
    rows.add(*columns)
    return rows


def _least_squares(x: Tensor, y: Tensor, form: str = "full", rank: int | None = None) -> Solution:
    moments = Moments(x.shape[-1], y.shape[-1])
    moments.add(x, y)
    return solve(moments, form, rank, 1e-6)


def _distance(x: Tensor, y: Tensor, solution: Solution) -> float:
    made = x @ solution.matrix.to(x) + solution.shift.to(x)
    return float(1 - F.cosine_similarity(made, y, dim=-1).mean())


@pytest.mark.parametrize(("form", "rank"), [("full", None), ("full", 2), ("scale", None)])
def test_a_map_that_made_the_directions_is_found(form: str, rank: int | None) -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 5, dtype=torch.float64)
    change = torch.randn(5, 2, dtype=torch.float64) @ torch.randn(2, 5, dtype=torch.float64)
    change = change if form == "full" else torch.rand(5, dtype=torch.float64).diag()
    wanted = torch.eye(5, dtype=torch.float64) + change
    # Lengths that no map makes: least squares follow the long rows, which the cosine does not.
    y = x @ wanted * torch.rand(400, 1, dtype=torch.float64).mul(3).exp()
    start = _least_squares(x, y, form, rank)
    found = solve_cosine(_kept(x, y), start, form, rank)
    assert found.before == pytest.approx(_distance(x, y, start)) and found.before > 1e-4
    assert found.after == pytest.approx(_distance(x, y, found.solution), abs=1e-12) and found.after < 1e-5
    made = found.solution.matrix
    torch.testing.assert_close(made / made.norm(), wanted / wanted.norm(), rtol=0, atol=5e-3)
    if form == "scale":
        assert torch.equal(made, made.diagonal().diag())
    elif rank is not None:
        assert torch.linalg.matrix_rank(made - torch.eye(5, dtype=torch.float64), atol=1e-9) == rank
    again = solve_cosine(_kept(x, y), start, form, rank)
    assert torch.equal(again.solution.matrix, made) and again.after == found.after


def test_a_part_of_the_stream_is_mapped() -> None:
    torch.manual_seed(0)
    m, s = (torch.randn(300, 4, dtype=torch.float64) for _ in range(2))
    wanted = torch.randn(4, 4, dtype=torch.float64)
    y = s + m @ wanted + 0.3
    start = Solution(torch.eye(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64), 1e-7)
    found = solve_cosine(_kept(m, y, s), start, "full", None)
    torch.testing.assert_close(found.solution.matrix, wanted, rtol=0, atol=1e-2)
    assert found.after < 1e-5 < found.before


def test_where_the_start_is_the_closest_it_stays() -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 3, dtype=torch.float64)
    start = Solution(2 * torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), 10.0)
    # Without a distance the ridge alone would move it.
    found = solve_cosine(_kept(x, x), start, "full", None)
    assert found.solution is start and found.after == found.before


@pytest.mark.parametrize("cuts", [[40], [1, 9, 30], [16, 24], [3] * 13 + [1]])
def test_a_sample_of_rows_is_that_of_all_however_they_are_cut(cuts: list[int]) -> None:
    x = torch.arange(40.0)[:, None]
    whole, parts = Reservoir(16), Reservoir(16)
    whole.add(x, -x)
    for some in torch.split(x, cuts):
        parts.add(some, -some)
    assert torch.equal(whole.rows[0], parts.rows[0]) and torch.equal(whole.rows[1], -whole.rows[0])
    assert len(set(whole.rows[0].flatten().tolist())) == 16 and whole.seen == 40


def test_each_row_is_kept_as_often_as_any_other() -> None:
    counts = torch.zeros(20)
    for seed in range(400):
        reservoir = Reservoir(5)
        reservoir._generator.manual_seed(seed)
        reservoir.add(torch.arange(20.0)[:, None])
        counts[reservoir.rows[0].flatten().long()] += 1
    assert counts.sum() == 2000 and counts.min() > 70 and counts.max() < 130


def test_rows_of_half_precision_are_kept_in_single() -> None:
    rows: Any = _kept(torch.ones(2, 3, dtype=torch.bfloat16)).rows
    assert rows[0].dtype == torch.float32

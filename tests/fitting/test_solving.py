"""Least squares: normal equations and what a ridge does to them, and linear maps, from moments."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

import repl_fx
from repl_fx.fitting import solving
from repl_fx.fitting.solving import Gram, Moments, least_squares, ridge_for, solve


def _moments(x: Tensor, y: Tensor) -> Moments:
    moments = Moments(x.shape[-1], y.shape[-1])
    moments.add(x, y)
    return moments


def _distance(x: Tensor, y: Tensor, matrix: Tensor, shift: Tensor) -> float:
    return float((x @ matrix + shift - y).square().sum() / (y - y.mean(0)).square().sum())


@given(cuts=st.lists(st.integers(1, 39), max_size=4), seed=st.integers(0, 99))
def test_batches_add_up_to_the_whole(cuts: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(40, 3, generator=generator, dtype=torch.float64) + 5 for _ in range(2))
    parts = Moments(3, 3)
    edges = [0, *sorted(cuts), 40]
    for begin, end in itertools.pairwise(edges):
        parts.add(x[begin:end], y[begin:end])
    assert parts.rows == 40
    torch.testing.assert_close(parts.means, (x.mean(0), y.mean(0)))
    both = torch.cov(torch.cat([x, y], 1).t(), correction=0)
    torch.testing.assert_close(parts.covariances, (both[:3, :3], both[:3, 3:]))


@pytest.mark.parametrize("panel", [1, 3, 4, 1024])
def test_a_gram_matrix_is_whole_at_any_time(panel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solving, "_PANEL", panel)
    torch.manual_seed(0)
    rows, weights = torch.randn(12, 7, dtype=torch.float64), torch.rand(12, dtype=torch.float64)
    gram = Gram()
    gram.add(rows[:5])
    torch.testing.assert_close(gram.whole(), rows[:5].t() @ rows[:5])
    gram.add(rows[5:], weights[5:])
    wanted = rows[:5].t() @ rows[:5] + rows[5:].t() @ weights[5:].diag() @ rows[5:]
    torch.testing.assert_close(gram.whole(), wanted)


@pytest.mark.parametrize("rank", [None, 2])
def test_a_map_that_made_the_rows_is_found(rank: int | None) -> None:
    torch.manual_seed(0)
    x, shift = torch.randn(200, 5, dtype=torch.float64) + 3, torch.randn(5, dtype=torch.float64)
    thin = torch.randn(5, 2, dtype=torch.float64) @ torch.randn(2, 5, dtype=torch.float64)
    matrix = torch.eye(5, dtype=torch.float64) + thin
    found = solve(_moments(x, x @ matrix + shift), "full", rank, 1e-12)
    torch.testing.assert_close(found.matrix, matrix, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.shift, shift, rtol=1e-8, atol=1e-8)


def test_each_form_is_the_best_of_its_kind() -> None:
    torch.manual_seed(0)
    x, y = (torch.randn(300, 4, dtype=torch.float64) for _ in range(2))
    y = y + x @ torch.randn(4, 4, dtype=torch.float64)
    moments = _moments(x, y)
    solutions = {"full": solve(moments, "full", None, 0), "thin": solve(moments, "full", 2, 0)}
    solutions["scale"] = solve(moments, "scale", None, 0)
    assert torch.linalg.matrix_rank(solutions["thin"].matrix - torch.eye(4, dtype=torch.float64)) == 2
    assert torch.equal(solutions["scale"].matrix, solutions["scale"].matrix.diagonal().diag())
    for name, solution in solutions.items():
        least = _distance(x, y, solution.matrix, solution.shift)
        # Any other map of the form is farther away.
        for seed in range(20):
            generator = torch.Generator().manual_seed(seed)
            matrix, shift = _moved(name, solution.matrix, generator), solution.shift
            assert _distance(x, y, matrix, shift) >= least
            assert _distance(x, y, solution.matrix, shift + 0.1 * torch.randn(4, generator=generator)) > least
    far = {name: _distance(x, y, solution.matrix, solution.shift) for name, solution in solutions.items()}
    assert far["full"] < far["thin"] and far["full"] < far["scale"]


def _moved(form: str, matrix: Tensor, generator: torch.Generator) -> Tensor:
    step = 0.1 * torch.randn(4, 4, dtype=torch.float64, generator=generator)
    if form == "scale":
        return matrix + step.diagonal().diag()
    if form == "full":
        return matrix + step
    left, sizes, right = torch.linalg.svd(matrix - torch.eye(4, dtype=torch.float64) + step)
    thin: Tensor = left[:, :2] * sizes[:2] @ right[:2]
    return torch.eye(4, dtype=torch.float64) + thin


def test_a_ridge_draws_the_map_to_the_identity() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(50, 3, dtype=torch.float64), torch.randn(50, 3, dtype=torch.float64)
    moments = _moments(x, y)
    distances = [
        float((solve(moments, "full", None, ridge).matrix - torch.eye(3, dtype=torch.float64)).norm())
        for ridge in (1e-6, 1.0, 1e6)
    ]
    assert distances[0] > distances[1] > distances[2] and distances[2] < 1e-5


def test_few_rows_raise_the_ridge_and_no_rows_that_differ_are_a_line() -> None:
    torch.manual_seed(0)
    few, many = (torch.randn(rows, 8, dtype=torch.float64) for rows in (31, 32))
    assert solve(_moments(few, few), "full", None, None).ridge == 1e-2
    assert solve(_moments(many, many), "full", None, None).ridge == 1e-6
    assert solve(_moments(few, few), "scale", None, None).ridge == 1e-6
    alike = torch.ones(9, 8, dtype=torch.float64)
    with pytest.raises(repl_fx.BadInput, match="the same in all samples"):
        solve(_moments(alike, alike), "full", None, None)
    with pytest.raises(repl_fx.BadInput, match="ridge 0 is too small for 4 rows of 8 channels"):
        solve(_moments(few[:4], few[:4]), "full", None, 0)


@pytest.mark.parametrize("rank", [None, 2])
def test_a_map_between_widths_is_found_and_drawn_to_its_start(rank: int | None) -> None:
    torch.manual_seed(0)
    x, shift = torch.randn(200, 5, dtype=torch.float64) + 3, torch.randn(7, dtype=torch.float64)
    matrix = torch.randn(5, 2, dtype=torch.float64) @ torch.randn(2, 7, dtype=torch.float64)
    moments = _moments(x, x @ matrix + shift)
    start = torch.eye(5, 7, dtype=torch.float64)
    beside = start if rank is None else torch.zeros_like(start)
    found = solve(moments, "full", rank, 1e-12, around=(start, beside))
    torch.testing.assert_close(found.matrix, matrix, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.shift, shift, rtol=1e-8, atol=1e-8)
    start[2:] = 0
    far = solve(moments, "full", rank, 1e9, around=(start, torch.zeros_like(start)))
    torch.testing.assert_close(far.matrix, start, rtol=1e-6, atol=1e-6)


def _fitted(features: Tensor, wanted: Tensor, ridge: float, start: Tensor | None = None) -> Tensor:
    return least_squares(features.t() @ features, features.t() @ wanted, ridge, start)


def test_the_least_squares_are_found_whatever_the_scale_of_a_feature() -> None:
    torch.manual_seed(0)
    features, wanted = torch.randn(50, 4, dtype=torch.float64), torch.randn(50, 3, dtype=torch.float64)
    expected = torch.linalg.lstsq(features, wanted).solution
    torch.testing.assert_close(_fitted(features, wanted, 0.0), expected)
    scale = torch.tensor([1e-6, 1.0, 1e3, 1.0], dtype=torch.float64)
    scaled = _fitted(features * scale, wanted, 0.1)
    torch.testing.assert_close(scaled * scale[:, None], _fitted(features, wanted, 0.1))


def test_a_ridge_draws_to_the_start() -> None:
    torch.manual_seed(0)
    features, wanted = torch.randn(50, 4, dtype=torch.float64), torch.randn(50, dtype=torch.float64)
    start = torch.ones(4, dtype=torch.float64)
    torch.testing.assert_close(_fitted(features, wanted, 0.0, start), _fitted(features, wanted, 0.0))
    torch.testing.assert_close(_fitted(features, wanted, 1e9, start), start, atol=1e-6, rtol=0)
    torch.testing.assert_close(_fitted(features, wanted, 1e9), 0 * start, atol=1e-6, rtol=0)


def test_a_feature_that_is_always_zero_leaves_its_number() -> None:
    features = torch.tensor([[1.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    found = _fitted(features, torch.tensor([1.0, 2.0], dtype=torch.float64), 0.0)
    torch.testing.assert_close(found, torch.tensor([1.0, 0.0], dtype=torch.float64))


def test_equations_without_a_single_solution_are_a_line() -> None:
    features, wanted = torch.ones(3, 2, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    with pytest.raises(repl_fx.BadInput, match="ridge 0 is too small to fit 2 numbers"):
        _fitted(features, wanted, 0.0)
    halves = torch.full((2,), 0.5, dtype=torch.float64)
    torch.testing.assert_close(_fitted(features, wanted, 1e-6), halves, atol=1e-5, rtol=0)


def test_few_rows_raise_the_ridge() -> None:
    assert ridge_for(31, 8) == 1e-2 and ridge_for(32, 8) == 1e-6 and ridge_for(33, 8) == 1e-6

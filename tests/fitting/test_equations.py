"""Normal equations, and what a ridge does to them."""

from __future__ import annotations

import pytest
import torch

import repl_fx
from repl_fx.fitting.equations import Equations, ridge_for


def _equations(features: torch.Tensor, wanted: torch.Tensor) -> Equations:
    return Equations(features.t() @ features, features.t() @ wanted)


def test_the_least_squares_are_found_whatever_the_scale_of_a_feature() -> None:
    torch.manual_seed(0)
    features, wanted = torch.randn(50, 4, dtype=torch.float64), torch.randn(50, 3, dtype=torch.float64)
    expected = torch.linalg.lstsq(features, wanted).solution
    equations = _equations(features, wanted)
    theta = equations.solve(0.0)
    torch.testing.assert_close(theta, expected)
    scale = torch.tensor([1e-6, 1.0, 1e3, 1.0], dtype=torch.float64)
    scaled = _equations(features * scale, wanted).solve(0.1)
    torch.testing.assert_close(scaled * scale[:, None], equations.solve(0.1))


def test_a_ridge_draws_to_the_start() -> None:
    torch.manual_seed(0)
    features, wanted = torch.randn(50, 4, dtype=torch.float64), torch.randn(50, dtype=torch.float64)
    start = torch.ones(4, dtype=torch.float64)
    equations = _equations(features, wanted)
    torch.testing.assert_close(equations.solve(0.0, start), equations.solve(0.0))
    torch.testing.assert_close(equations.solve(1e9, start), start, atol=1e-6, rtol=0)
    torch.testing.assert_close(equations.solve(1e9), 0 * start, atol=1e-6, rtol=0)


def test_a_feature_that_is_always_zero_leaves_its_number() -> None:
    features = torch.tensor([[1.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    found = _equations(features, torch.tensor([1.0, 2.0], dtype=torch.float64)).solve(0.0)
    torch.testing.assert_close(found, torch.tensor([1.0, 0.0], dtype=torch.float64))


def test_equations_without_a_single_solution_are_a_line() -> None:
    features = torch.ones(3, 2, dtype=torch.float64)
    equations = _equations(features, torch.ones(3, dtype=torch.float64))
    with pytest.raises(repl_fx.BadInput, match="ridge 0 is too small to fit 2 numbers"):
        equations.solve(0.0)
    torch.testing.assert_close(equations.solve(1e-6), torch.full((2,), 0.5, dtype=torch.float64), atol=1e-5, rtol=0)


def test_few_rows_raise_the_ridge() -> None:
    assert ridge_for(31, 8) == 1e-2 and ridge_for(32, 8) == 1e-6 and ridge_for(33, 8) == 1e-6

"""Arrays: equal is equal, and everything else is found out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from repl_fx.export import TOLERANCES, Difference
from repl_fx.export.difference import measure, tolerance_for, widened


def difference(ours: Tensor, theirs: Tensor, **override: float) -> Difference:
    return measure("y", 2, ours, theirs.numpy(), tolerance_for(ours.dtype, **override))


def test_equal_infinities_are_equal_and_others_are_not() -> None:
    ours = torch.tensor([1.0, -math.inf, 2.0])
    assert difference(ours, ours.clone()).passed
    assert not difference(ours, -ours).passed
    assert not difference(ours, torch.tensor([1.0, -3e38, 2.0])).passed
    assert not difference(torch.tensor([1.0, 2.0]), torch.tensor([1.0, math.nan])).passed


def test_integers_have_no_tolerance() -> None:
    for dtype in (torch.int64, torch.uint8, torch.bool):
        found = tolerance_for(dtype)
        assert (found.rtol, found.atol) == (0.0, 0.0)


def test_a_difference_without_finite_numbers_has_no_bound() -> None:
    for made, bound in ((torch.tensor([math.nan, math.inf]), math.inf), (torch.empty(0), 0.0)):
        found = difference(made, made.clone())
        assert (found.max_abs, found.mean_abs, found.median_abs, found.max_rel) == (bound,) * 4


def test_a_fill_value_does_not_loosen_the_tolerance_of_the_rest() -> None:
    ours = torch.cat([torch.randn(100, generator=torch.Generator().manual_seed(0)), torch.tensor([-1e9, -3.4e38])])
    theirs = ours.clone()
    theirs[0] += 1e-2
    row = difference(ours, theirs)
    assert row.scale < 10 and not row.passed
    assert difference(ours, ours.clone()).passed


@settings(max_examples=60, deadline=None)
@given(
    scale=st.floats(1e-6, 1e6),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16]),
    seed=st.integers(0, 1000),
)
def test_the_tolerance_follows_the_scale_and_can_fail(scale: float, dtype: torch.dtype, seed: int) -> None:
    # float16 has neither the small nor the large numbers.
    scale = min(max(scale, 1e-2), 1e3) if dtype == torch.float16 else scale
    ours = (torch.randn(5, 8, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)
    bound = TOLERANCES[dtype].atol * float(ours.abs().max())
    for factor, passes in ((0.5, True), (3.0, False)):
        theirs = ours.clone()
        # At the smallest number, where the relative part adds nothing and adding loses no bits of the shift.
        theirs.view(-1)[ours.abs().argmin()] += factor * bound
        assert difference(ours, theirs).passed is passes


@pytest.mark.parametrize(
    ("dtype", "passes", "fails"),
    [(torch.float64, 1e-14, 1e-13), (torch.float32, 1e-5, 1e-4), (torch.float16, 1e-2, 5e-2)],
)
def test_the_tolerance_in_figures(dtype: torch.dtype, passes: float, fails: float) -> None:
    ours = torch.tensor([0.0, 1.0, -1.0], dtype=dtype)
    for gap, expected in ((passes, True), (fails, False)):
        for entry in range(3):
            theirs = ours.clone()
            theirs[entry] += gap
            assert difference(ours, theirs).passed is expected


def test_the_relative_part_follows_each_number_and_is_no_more() -> None:
    ours = torch.tensor([1.0, 1000.0], dtype=torch.float64)
    for entry, gap, expected in ((1, 0.9, True), (1, 1.1, False), (0, 0.9e-3, True), (0, 1.1e-3, False)):
        theirs = ours.clone()
        theirs[entry] += gap
        assert difference(ours, theirs, rtol=1e-3, atol=0.0).passed is expected


def test_the_cosine_has_a_sign() -> None:
    ours = torch.tensor([1.0, -2.0, 3.0])
    assert difference(ours, ours.clone()).cosine == pytest.approx(1.0)
    assert difference(ours, -ours).cosine == pytest.approx(-1.0)
    assert difference(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])).cosine == 0.0
    assert difference(torch.zeros(3), torch.zeros(3)).cosine == 1.0
    turned = torch.complex(ours, ours)
    assert difference(turned, -turned).cosine == pytest.approx(-1.0)


def test_integers_must_be_equal() -> None:
    ours = torch.arange(10)
    assert difference(ours, ours.clone()).passed
    theirs = ours.clone()
    theirs[3] += 1
    row = difference(ours, theirs)
    assert not row.passed and row.max_abs == 1
    large = torch.tensor([2**60, 2**60])
    assert not difference(large, large + 1).passed
    assert not difference(torch.tensor([True, False]), torch.tensor([True, True]), atol=10.0).passed


def test_top1_counts_choices_but_not_ties() -> None:
    ours = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0 - 1e-7], [0.3, 0.4]])
    theirs = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0 - 1e-7, 1.0], [0.3, 0.4]])
    assert difference(ours, theirs).top1_agreement == 0.75
    assert difference(ours[:, :1], theirs[:, :1]).top1_agreement is None


def test_tolerances_go_by_the_dtype() -> None:
    assert tolerance_for(torch.complex64) == TOLERANCES[torch.float32]
    assert tolerance_for(torch.float16, atol=0.5).rtol == TOLERANCES[torch.float16].rtol
    assert tolerance_for(torch.float16, atol=0.5).atol == 0.5
    with pytest.raises(KeyError, match="bfloat16"):
        tolerance_for(torch.bfloat16)


def test_complex_numbers_are_compared() -> None:
    ours = torch.randn(3, 4, dtype=torch.complex64)
    assert difference(ours, ours.clone()).passed
    row = difference(ours, ours * 1.01)
    assert not row.passed and row.top1_agreement is None


def test_the_tolerance_widens_with_rounding_and_with_nothing_else() -> None:
    tolerance = TOLERANCES[torch.float32]
    expected = torch.tensor([1.0, -2.0])
    assert widened(tolerance, expected, expected.double()) is tolerance
    assert widened(tolerance, expected, expected.double() + 4e-5).atol == pytest.approx(6e-5)
    # That much is an error, not rounding.
    assert widened(tolerance, expected, expected.double() + 1e-2) is tolerance
    assert widened(tolerance, torch.full((2,), math.nan), expected.double()) is tolerance
    # Half precision rounds more, and more of it is believed.
    half, tolerance = expected.half(), TOLERANCES[torch.float16]
    assert widened(tolerance, half, half.double() + 4e-5) is tolerance
    assert widened(tolerance, half, half.double() + 4e-2).atol == pytest.approx(6e-2)
    assert widened(tolerance, half, half.double() + 1e-1) is tolerance

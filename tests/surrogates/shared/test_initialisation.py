"""Initialisation of the parameters that a surrogate learns."""

from __future__ import annotations

import pytest
import torch

from repl_fx.surrogates.shared.initialisation import length, random_values, ratio


def test_random_values_are_those_of_the_seed_in_any_precision() -> None:
    made = []
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(1)
        made.append(random_values(torch.empty(0, dtype=dtype), 3, 4))
    assert [value.dtype for value in made] == [torch.float32, torch.float64]
    assert made[0].shape == (3, 4) and torch.equal(made[0].double(), made[1]) and made[0].std() > 0.5


def test_random_values_on_meta_draw_nothing() -> None:
    before = torch.get_rng_state()
    assert random_values(torch.empty(0, device="meta"), 3).is_meta
    assert torch.equal(torch.get_rng_state(), before)


def test_the_length_of_several_pieces_is_that_of_one_vector() -> None:
    assert length([torch.tensor([2.0]), torch.tensor([[3.0, 6.0]])]) == pytest.approx(7.0)
    # More than there is in half precision.
    assert length([torch.full((4,), 60_000.0, dtype=torch.float16)]) == pytest.approx(120_000.0)


def test_the_ratio_to_no_length_is_one() -> None:
    assert [ratio(3.0, 2.0), ratio(0.0, 2.0), ratio(3.0, 0.0)] == [1.5, 1.0, 1.0]

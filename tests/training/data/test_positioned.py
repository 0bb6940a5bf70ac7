"""Positions of loaders: saved, restored, and refused where they are of another loader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from repl_fx.errors import BadInput
from repl_fx.training.data.positioned import PositionedLoader, seed_of


class Counting(PositionedLoader):
    def __len__(self) -> int:
        return 3

    def _batches(self, epoch: int, first: int) -> Iterator[Any]:
        yield from ((epoch, number) for number in range(first, 3))

    def _identity(self) -> dict[str, int]:
        return {"seed": 7}


def test_epochs_follow_one_another_and_can_be_named() -> None:
    loader = Counting()
    assert [epoch for epoch, _ in [*loader, *loader]] == [0, 0, 0, 1, 1, 1]
    loader.sampler.set_epoch(5)
    assert next(iter(loader)) == (5, 0)


@pytest.mark.parametrize(("given", "then"), [(0, (2, 0)), (1, (2, 1)), (3, (3, 0))])
def test_an_iteration_goes_on_from_a_position(given: int, then: tuple[int, int]) -> None:
    loader = Counting()
    loader.load_state_dict({"seed": 7, "epoch": 2, "batches": given})
    loader.set_epoch(then[0])
    assert next(iter(loader)) == then
    assert loader.state_dict() == {"seed": 7, "epoch": then[0], "batches": then[1] + 1}


def test_a_position_of_another_loader_is_a_line() -> None:
    with pytest.raises(BadInput, match="has seed 8, wanted is 7"):
        Counting().load_state_dict({"seed": 8, "epoch": 0, "batches": 0})
    with pytest.raises(BadInput, match="at batch 4 of epoch 0; an epoch has 3 batches"):
        Counting().load_state_dict({"seed": 7, "epoch": 0, "batches": 4})


def test_seeds_are_of_64_bits_and_unlike() -> None:
    assert len({seed_of(0), seed_of(1), seed_of(0, 0), seed_of(0, 1), seed_of(0, 0, 0)}) == 5
    assert max(seed_of(number) for number in range(9)) > 2**32

"""The best choice under limits, against all choices there are."""

from __future__ import annotations

from itertools import combinations, pairwise, product

import pytest
from hypothesis import given, settings, strategies as st

from repl_fx.planning import knapsack
from repl_fx.planning.knapsack import Item, Packing, PlaceRow, TooMany, front_of, whole

COSTS = 2
SAVED = st.tuples(st.integers(-3, 9), st.integers(-3, 9))
ITEM = st.builds(Item, st.integers(-2, 6), SAVED, st.none() | SAVED, st.booleans())
ITEMS = st.lists(ITEM, max_size=2).map(tuple)
ROWS = st.builds(PlaceRow, st.lists(ITEMS, max_size=5).map(tuple), st.booleans())
# A place that goes, and which of its items.
Going = tuple[int, int]
LIMITS = st.tuples(st.integers(-5, 20), st.integers(-5, 20))


def every_choice(row: PlaceRow) -> list[tuple[Going, ...]]:
    places = [i for i, items in enumerate(row.items) if items]
    subsets = [some for size in range(len(places) + 1) for some in combinations(places, size)]
    allowed = [s for s in subsets if not row.apart or all(b - a > 1 for a, b in pairwise(s))]
    return [going for some in allowed for going in product(*([(i, k) for k in range(len(row.items[i]))] for i in some))]


def sums(row: PlaceRow, going: tuple[Going, ...]) -> tuple[int, tuple[int, ...]]:
    gone = {i: row.items[i][k] for i, k in going}
    joined = {i for i in gone if i + 1 in gone and gone[i + 1].joins}
    saved = [item.inner if i in joined and item.inner is not None else item.saved for i, item in gone.items()]
    return sum(item.loss for item in gone.values()), tuple(sum(each[k] for each in saved) for k in range(COSTS))


def best(choices: list[tuple[int, tuple[int, ...]]], limits: tuple[int, ...]) -> int | None:
    losses = [loss for loss, saved in choices if all(s >= need for s, need in zip(saved, limits, strict=True))]
    return min(losses, default=None)


@settings(max_examples=150, deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=2), LIMITS)
def test_the_least_loss_under_limits_is_that_of_all_choices(rows: list[PlaceRow], limits: tuple[int, int]) -> None:
    every = [(0, (0,) * COSTS)]
    for row in rows:
        own = [sums(row, going) for going in every_choice(row)]
        every = [(a + b, (s[0] + t[0], s[1] + t[1])) for a, s in every for b, t in own]
    front = front_of(rows, COSTS)
    assert best([(choice.loss, choice.saved) for choice in front], limits) == best(every, limits)
    for choice in front:
        found = [sums(row, tuple((i, k) for r, i, k in choice.gone if r == n)) for n, row in enumerate(rows)]
        assert choice.loss == sum(loss for loss, _ in found)
        assert choice.saved == tuple(sum(saved[k] for _, saved in found) for k in range(COSTS))
        for n, row in enumerate(rows):
            assert tuple((i, k) for r, i, k in choice.gone if r == n) in every_choice(row)


def alike(places: int, apart: bool) -> PlaceRow:
    inner = ((Item(1, (10,)),),) * (places - 2)
    return PlaceRow(((), *inner, ()), apart)


def gone(front: list[Packing], loss: int) -> list[tuple[int, ...]]:
    return [tuple(place for _, place, _ in choice.gone) for choice in front if choice.loss == loss]


def test_equal_places_that_go_are_spread_evenly_and_later_ones_first() -> None:
    front = front_of([alike(12, apart=True)], 1)
    assert [gone(front, loss) for loss in range(4)] == [[()], [(6,)], [(4, 8)], [(3, 6, 9)]]
    assert max(choice.loss for choice in front) == 5


def test_equal_places_go_from_the_longer_row_first() -> None:
    (choice,) = [c for c in front_of([alike(4, apart=True), alike(9, apart=True)], 1) if c.loss == 2]
    assert [row for row, _, _ in choice.gone] == [1, 1]


def test_places_in_a_row_go_where_they_need_not_be_apart() -> None:
    assert max(choice.loss for choice in front_of([alike(6, apart=False)], 1)) == 4


def test_of_equal_loss_the_choice_that_saves_more_goes() -> None:
    row = PlaceRow(((), (Item(1, (5,)),), (), (Item(1, (7,)),), ()), apart=True)
    assert gone(front_of([row], 1), 1) == [(3,)]


def test_whole_numbers_keep_proportions_exactly() -> None:
    assert whole([0.5, 2.0, -0.25]) == [2, 8, -1]
    assert whole([1e-300, 1.0])[0] > 0


def test_a_front_that_is_too_large_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knapsack, "LARGEST", 10)
    row = PlaceRow(tuple((Item(2**i, (2**i,)),) for i in range(5)), apart=False)
    with pytest.raises(TooMany):
        front_of([row], 1)

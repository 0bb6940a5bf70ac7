"""The best choice of what goes under several limits: a knapsack over rows, solved exactly by dynamic programming.

    row   0 1 2 3 4 5      items for each place that may go, each with its loss and what it saves of each cost
            x     x        apart: no two places that go are next to each other

    after item k of place i    ends[i, k] = best of ends[j, l] with that item, j < i (apart: j < i - 1)
    after a row                all ends of it, added to all choices of the rows before

A choice that saves no more of any cost than another, and loses no less, is dropped: what is left is the Pareto front.
Numbers are whole, so equal sums are equal. Of choices that save and lose the same, that one stays whose gaps between
places that go are most even (the least sum of their squares), then the one that goes later.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np

# Choices of a front above which a search would take minutes.
LARGEST = 20_000


@dataclass(frozen=True)
class Item:
    """A way in which a place may go.

    Attributes:
        loss: the score that goes with it.
        saved: of each cost; below 0 where it costs more than before.
        inner: what it saves where the next place goes by an item that joins; None where that is no other.
        joins: whether it can do the work of the place before too.
    """

    loss: int
    saved: tuple[int, ...]
    inner: tuple[int, ...] | None = None
    joins: bool = True


@dataclass(frozen=True)
class PlaceRow:
    """Places in order.

    Attributes:
        items: the ways in which each place may go; none for a place that stays.
        apart: whether no two places next to each other may go.
    """

    items: tuple[tuple[Item, ...], ...]
    apart: bool


class TooMany(Exception):
    """A front has more than `LARGEST` choices."""


class Packing(NamedTuple):
    """Places that go, with the sums of their items; of equal sums the one with the smaller `order` is better.

    Attributes:
        order: the sum of squared gaps, and the negative sum of places.
        gone: row and place of each, and which of its items.
    """

    loss: int
    saved: tuple[int, ...]
    order: tuple[int, int]
    gone: tuple[tuple[int, int, int], ...]

    def plus(
        self, loss: int, saved: Iterable[int], order: tuple[int, int], gone: tuple[tuple[int, int, int], ...]
    ) -> Packing:
        """The sum with another one, of which these are the fields."""
        sums = tuple(x + y for x, y in zip(self.saved, saved, strict=True))
        in_order = self.order[0] + order[0], self.order[1] + order[1]
        return Packing(self.loss + loss, sums, in_order, (*self.gone, *gone))


def front_of(rows: Sequence[PlaceRow], costs: int) -> list[Packing]:
    """All choices of which none saves as much of each cost, at as little loss, as another.

    Args:
        costs: the number of costs.

    Raises:
        TooMany: there are more than can be compared in seconds.
    """
    front = [Packing(0, (0,) * costs, (0, 0), ())]
    for number, row in enumerate(rows):
        ends = _ends(number, row, costs)
        front = undominated(one.plus(*other) for one in front for other in ends)
    return front


def whole(numbers: Sequence[float]) -> list[int]:
    """Whole numbers in exactly the same proportions."""
    exact = [Fraction(number) for number in numbers]
    scale = max((number.denominator for number in exact), default=1)
    # Denominators of floating point numbers are powers of two.
    return [int(number * scale) for number in exact]


def undominated(choices: Iterable[Packing]) -> list[Packing]:
    """The Pareto front of some choices: by loss, and of the same loss by what is saved.

    Raises:
        TooMany: see `front_of`.
    """
    best: dict[tuple[int, tuple[int, ...]], Packing] = {}
    for choice in choices:
        sums = choice.loss, choice.saved
        if sums not in best or choice.order < best[sums].order:
            best[sums] = choice
            if len(best) > 10 * LARGEST:
                raise TooMany
    ranked = sorted(best.values(), key=lambda choice: (choice.loss, tuple(-number for number in choice.saved)))
    if len(ranked) <= 1:
        return ranked
    # None is dominated by one behind it, and being dominated by one that is dominated itself is being dominated.
    kept = np.empty((len(ranked), len(ranked[0].saved)), dtype=np.int64)
    front: list[Packing] = []
    for choice in ranked:
        saved = np.array(choice.saved, dtype=np.int64)
        if not bool((kept[: len(front)] >= saved).all(axis=1).any()):
            kept[len(front)] = saved
            front.append(choice)
            if len(front) > LARGEST:
                raise TooMany
    return front


def _ends(number: int, row: PlaceRow, costs: int) -> list[Packing]:
    """The choices of one row."""
    places = len(row.items)
    none = Packing(0, (0,) * costs, (0, 0), ())
    # By the place that goes last and its item; the place is -1 where none does.
    ends: dict[tuple[int, int], list[Packing]] = {(-1, 0): [none]}
    for i, items in enumerate(row.items):
        found = {}
        for k, item in enumerate(items):
            with_it = (
                choice.plus(item.loss, more, ((i - last) ** 2, -i), ((number, i, k),))
                for (last, of_last), choices in ends.items()
                if last < 0 or last < i - row.apart
                for more in (_behind(row.items[last][of_last], item) if 0 <= last == i - 1 else item.saved,)
                for choice in choices
            )
            found[i, k] = undominated(with_it)
        ends |= found
    closed = (
        choice._replace(order=(choice.order[0] + (places - last) ** 2, choice.order[1]))
        for (last, _), choices in ends.items()
        for choice in choices
    )
    return undominated(closed)


def _behind(before: Item, item: Item) -> tuple[int, ...]:
    """The savings that an item adds where the place before goes too."""
    if before.inner is None or not item.joins:
        return item.saved
    each = zip(item.saved, before.inner, before.saved, strict=True)
    return tuple(saved + inner - alone for saved, inner, alone in each)

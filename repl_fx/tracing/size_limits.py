"""The sizes that a model takes, in a few words: the conditions of all its operators as one rule for each size.

    before   2*(x.shape[2] // 2) == x.shape[2];   2*(x.shape[2] // 2) + 2 >= 3;   4*(x.shape[2] // 4) == …
    after    x.shape[2] % 4 == 0;   x.shape[2] >= 4

The model itself stops where a condition does not hold, so that a rule need not be proven for each number: sizes are
tried one by one, up to twice the largest number in the conditions.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sympy import preorder_traversal

from repl_fx._torch import code_of
from repl_fx.graph.runtime import truth_of

_LEAST_TRIED, _MOST_TRIED = 512, 20_000
# Combinations of sizes for which rules of one size each are tried against conditions on several.
_COMBINATIONS = 200
# The largest of the sizes that count as one is less than the smallest times this.
_ONE = 1.5


@dataclass(frozen=True)
class Limit:
    """A condition on sizes that a model itself insists on.

    Attributes:
        condition: in the names of the sizes.
        names: those of the sizes in it.
        place: the line of the model that needs it, as the end of a phrase.
        largest: of the numbers in it, where it is one of an operator or of the model's code.
    """

    condition: str
    names: tuple[str, ...]
    place: str
    largest: int = 0

    @classmethod
    def of(cls, condition: Any, place: str) -> Limit:
        """A condition on symbols in words of Python's.

        Raises:
            ValueError: Python has none for it.
        """
        # A number that sizes are multiplied with is no size that they could come to.
        parts = (part for part in preorder_traversal(condition) if not part.is_Mul)
        largest = max((abs(int(number)) for part in parts for number in part.args if number.is_Integer), default=0)
        return cls(code_of(condition), tuple(sorted(map(str, condition.free_symbols))), place, largest)

    @cached_property
    def _truth(self) -> Callable[..., bool]:
        return truth_of(self.condition, self.names)

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Tell whether it holds for sizes, by name."""
        return self._truth(*(sizes[name] for name in self.names))


def limits_of(
    conditions: Mapping[Any, str], examples: Mapping[str, int], owners: Mapping[str, int]
) -> tuple[list[Limit], list[str]]:
    """Put conditions as rules of one size each, where they come to that.

    Args:
        conditions: on symbols, each with the place that needs it.
        examples: the sizes of the example inputs, by the names of their symbols; all conditions hold for them.
        owners: the numbers of the tensors that the sizes are of.

    Returns:
        The rules; and the names of sizes that can be no other, the rest being as in the example.

    Raises:
        ValueError: a condition that Python has no words for.
    """
    known = [Limit.of(condition, place) for condition, place in conditions.items()]
    rules: list[Limit] = []
    irregular: set[str] = set()
    pinned: list[str] = []
    for name in examples:
        concerned = [condition for condition in known if name in condition.names]
        if not concerned:
            continue
        taken = _taken(name, concerned, examples)
        tensors = {owners[other] for condition in concerned for other in condition.names}
        # Sizes that a rounded quotient makes one (224 to 239 pixels are 14 patches of 16) are of no use as more.
        if taken and taken[-1] < _ONE * taken[0] and len(tensors) == 1:
            pinned.append(name)
            continue
        found = _rules(name, taken, concerned, examples)
        if found is None or not _alone(name, taken, concerned, examples):
            irregular.add(name)
        else:
            rules += found
    drawn = random.Random(0)
    kept: list[Limit] = []
    for condition in known:
        if irregular.intersection(condition.names) or (
            len(condition.names) > 1 and not _follows(condition, rules, kept, examples, drawn)
        ):
            kept.append(condition)
    return rules + kept, pinned


def _taken(name: str, conditions: Sequence[Limit], examples: Mapping[str, int]) -> Sequence[int]:
    """The sizes tried that one size may have, the others being those of the example."""
    most = max(examples[name], *(condition.largest for condition in conditions)) * 2
    tried = range(min(max(most, _LEAST_TRIED), _MOST_TRIED) + 1)
    return [size for size in tried if _failing(name, size, conditions, examples) is None]


def _alone(name: str, taken: Sequence[int], conditions: Sequence[Limit], examples: Mapping[str, int]) -> bool:
    """Tell whether the sizes that one size may have are the same for other sizes of the rest."""
    if all(len(condition.names) == 1 for condition in conditions):
        return True
    twice = {other: size if other == name else 2 * size for other, size in examples.items()}
    half = {other: size if other == name else max(size // 2, 1) for other, size in examples.items()}
    found = [list(_taken(name, conditions, rest)) for rest in (twice, half)]
    # Of size 0, a condition on a product holds for any of the others.
    return any(map(any, found)) and all(sizes == list(taken) for sizes in found if any(sizes))


def _failing(name: str, size: int, conditions: Sequence[Limit], examples: Mapping[str, int]) -> Limit | None:
    return next((condition for condition in conditions if not condition.holds({**examples, name: size})), None)


def _rules(
    name: str, taken: Sequence[int], conditions: Sequence[Limit], examples: Mapping[str, int]
) -> list[Limit] | None:
    """The rules for one size that may have those `taken`; None where these are irregular."""
    found: list[Limit] = []
    if len(taken) < 2:
        return None
    step = math.gcd(*(later - size for size, later in itertools.pairwise(taken)))
    if list(taken) != list(range(taken[0], taken[-1] + 1, step)):
        return None

    def add(code: str, outside: int) -> None:
        failing = _failing(name, outside, conditions, examples)
        found.append(Limit(code, (name,), "" if failing is None else failing.place))

    rest = taken[0] % step
    if step > 1:
        add(f"{name} % {step} == {rest}", taken[0] + 1)
    if taken[0] > max(step, 1):
        add(f"{name} >= {taken[0]}", taken[0] - step)
    if _failing(name, taken[-1] + step, conditions, examples) is not None:
        add(f"{name} <= {taken[-1]}", taken[-1] + step)
    return found


def _follows(
    condition: Limit, rules: Sequence[Limit], kept: Sequence[Limit], examples: Mapping[str, int], drawn: random.Random
) -> bool:
    """Tell whether a condition on several sizes holds wherever the rules do, and the conditions kept so far."""
    tried = ({name: _size(name, size, rules, drawn) for name, size in examples.items()} for _ in range(_COMBINATIONS))
    return all(condition.holds(sizes) or not all(other.holds(sizes) for other in kept) for sizes in tried)


def _size(name: str, example: int, rules: Sequence[Limit], drawn: random.Random) -> int:
    """A size for which the rules hold, near that of the example."""
    own = [rule for rule in rules if rule.names == (name,)]
    tried = (drawn.randint(1, 2 * example + 8) for _ in range(_COMBINATIONS))
    return next((size for size in tried if all(rule.holds({name: size}) for rule in own)), example)

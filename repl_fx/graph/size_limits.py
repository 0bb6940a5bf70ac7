"""The sizes that a model takes, in a few words: the conditions of all its operators as one rule for each size.

    before   2*(x.shape[2] // 2) == x.shape[2];   2*(x.shape[2] // 2) + 2 >= 3;   4*(x.shape[2] // 4) == …
    after    x.shape[2] % 4 == 0;   x.shape[2] >= 4

A rule need not be proven for each number, as the model itself stops where a condition does not hold, or a graph goes on
checking the condition and the rule is its words alone: sizes are tried one by one, up to twice the largest one that the
conditions tell of.
"""

from __future__ import annotations

import ast
import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from repl_fx._torch import code_of
from repl_fx.graph.runtime import truth_of

_LEAST_TRIED, _MOST_TRIED = 512, 20_000
# Combinations of sizes for which rules of one size each are tried against conditions on several.
_COMBINATIONS = 200
# The largest of the sizes that count as one is less than the smallest times this.
_ONE = 1.5


@dataclass(frozen=True)
class Limit:
    """A condition on sizes: of a model that stops where it does not hold, or of a graph that is of one way alone.

    Attributes:
        condition: in the names of the sizes.
        names: those of the sizes in it.
        place: the line of the model that needs it, as the end of a phrase.
    """

    condition: str
    names: tuple[str, ...]
    place: str

    @classmethod
    def of(cls, condition: Any, place: str) -> Limit:
        """A condition on symbols in words of Python's.

        Raises:
            ValueError: Python has none for it.
        """
        return cls(code_of(condition), tuple(sorted(map(str, condition.free_symbols))), place)

    @cached_property
    def largest(self) -> int:
        """The largest size that its numbers tell of: in `(n + 24) // 28 > 3` the quotient's times the other one's."""
        parts = list(ast.walk(ast.parse(self.condition, mode="eval")))
        operations = [part for part in parts if isinstance(part, ast.BinOp)]
        # A number that sizes are multiplied with is no size that they could come to.
        factors = {side for part in operations if isinstance(part.op, ast.Mult) for side in (part.left, part.right)}
        divided = {inner for part in operations if isinstance(part.op, ast.FloorDiv) for inner in ast.walk(part)}
        numbers = {
            part: abs(part.value)
            for part in parts
            if isinstance(part, ast.Constant) and isinstance(part.value, int) and part not in factors
        }
        inside, outside = (
            max([1, *(number for part, number in numbers.items() if (part in divided) is within)])
            for within in (True, False)
        )
        return inside * outside

    @cached_property
    def _truth(self) -> Callable[..., bool]:
        return truth_of(self.condition, self.names)

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Tell whether it holds for sizes, by name."""
        return self._truth(*(sizes[name] for name in self.names))


def limits_of(
    known: Sequence[Limit], examples: Mapping[str, int], owners: Mapping[str, int] | None = None
) -> tuple[list[Limit], list[str]]:
    """Put conditions as rules of one size each, where they come to that.

    Args:
        known: the conditions.
        examples: the sizes of the example inputs, by name; all conditions hold for them.
        owners: the numbers of the tensors that the sizes are of, where sizes that could be few others are to be fixed.

    Returns:
        The rules, then the conditions that come to none; and the names of sizes to fix.
    """
    rules: list[Limit] = []
    irregular: set[str] = set()
    pinned: list[str] = []
    for name in examples:
        concerned = [condition for condition in known if name in condition.names]
        if not concerned:
            continue
        taken = _taken(name, concerned, examples)
        tensors = {owners[other] for condition in concerned for other in condition.names} if owners else ()
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


def those_beside(rules: Sequence[Limit], conditions: Sequence[Limit], examples: Mapping[str, int]) -> list[Limit]:
    """Those of some rules that do not follow from conditions, as far as these come to rules themselves."""
    given = [rule for rule in limits_of(conditions, examples)[0] if len(rule.names) == 1]
    drawn = random.Random(0)
    return [rule for rule in rules if not given or not _follows(rule, given, (), examples, drawn)]


def needed_beside(condition: Limit, given: Sequence[Limit], examples: Mapping[str, int]) -> bool:
    """Tell whether a condition fails at sizes for which others hold; of one size, all up to a number are tried."""
    if len(condition.names) > 1:
        return not _follows(condition, given, (), examples, random.Random(0))
    (name,) = condition.names
    most = min(max(2 * condition.largest, _LEAST_TRIED), _MOST_TRIED)
    own = [one for one in given if one.names == condition.names]
    return not all(
        condition.holds({name: size}) or _failing(name, size, own, examples) is not None for size in range(1, most)
    )


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
    """The rules for one size that may have those `taken`; None where these are irregular, or not all that tell."""
    found: list[Limit] = []
    gaps = _gaps(taken)
    period, first, length = _pattern(sorted({*taken, *gaps}))
    if not length or any(2 * condition.largest > _MOST_TRIED for condition in conditions):
        return None

    def add(code: str, outside: int) -> None:
        failing = _failing(name, outside, conditions, examples)
        found.append(Limit(code, (name,), "" if failing is None else failing.place))

    last = (first + length - 1) % period
    if period > 1 and length == 1:
        add(f"{name} % {period} == {last}", first + 1)
    elif period > 1 and last == 0:
        add(f"-{name} % {period} <= {length - 1}", first + length)
    elif period > 1:
        add(f"({name} - {first}) % {period} < {length}", first + length)
    if gaps:
        add(f"{name} % {gaps.step} != 0", gaps[0])
    before, after = (
        next(
            size
            for size in itertools.count(edge, step)
            if (size - first) % period < length and (not gaps or size % gaps.step)
        )
        for edge, step in ((taken[0] - 1, -1), (taken[-1] + 1, 1))
    )
    if before > 0:
        add(f"{name} >= {taken[0]}", before)
    if _failing(name, after, conditions, examples) is not None:
        add(f"{name} <= {taken[-1]}", after)
    return found


def _gaps(taken: Sequence[int]) -> range:
    """The multiples of a number that are missing among sizes of one step, between their ends; none where others are."""
    step = math.gcd(*(later - size for size, later in itertools.pairwise(taken)))
    missing = sorted(set(range(taken[0], taken[-1], step)) - set(taken)) if step else []
    if len(missing) < 2:
        return range(0)
    gaps = range(missing[0], missing[-1] + 1, missing[1] - missing[0])
    # Sizes that are missing in a row are no multiples of more than their step: of all sizes none would be left.
    return gaps if missing == list(gaps) and missing[0] % gaps.step == 0 and gaps.step > step else range(0)


def _pattern(taken: Sequence[int]) -> tuple[int, int, int]:
    """Sizes that come in runs as their period, the first of a whole run, and how long it is; 0 where they do not.

    The first run and the last one may be cut short.
    """
    if len(taken) < 2:
        return 1, 0, 0
    starts = [0, *(at for at in range(1, len(taken)) if taken[at] != taken[at - 1] + 1)]
    if len(starts) == 1:
        return 1, taken[0], 1
    whole = int(len(starts) > 2)
    first = taken[starts[whole]]
    period = taken[starts[whole + 1]] - first
    length = starts[whole + 1] - starts[whole]
    same = [size for size in range(taken[0], taken[-1] + 1) if (size - first) % period < length]
    return period, first, length if same == list(taken) else 0


def _follows(
    condition: Limit, rules: Sequence[Limit], kept: Sequence[Limit], examples: Mapping[str, int], drawn: random.Random
) -> bool:
    """Tell whether a condition on several sizes holds wherever the rules do, and the conditions kept so far."""
    # As many near the example as up to the largest one that the conditions tell of, which may be far from it.
    most = min(2 * max(one.largest for one in (condition, *rules, *kept)), _MOST_TRIED)
    tried = (
        {name: _size(name, size, rules, drawn, most * (number % 2)) for name, size in examples.items()}
        for number in range(_COMBINATIONS)
    )
    return all(condition.holds(sizes) or not all(other.holds(sizes) for other in kept) for sizes in tried)


def _size(name: str, example: int, rules: Sequence[Limit], drawn: random.Random, most: int) -> int:
    """A size for which the rules hold, near that of the example or up to another."""
    own = [rule for rule in rules if rule.names == (name,)]
    tried = (drawn.randint(1, max(2 * example + 8, most)) for _ in range(_COMBINATIONS))
    return next((size for size in tried if all(rule.holds({name: size}) for rule in own)), example)

"""Conditions of many operators as one rule for each size."""

from __future__ import annotations

import sympy
from hypothesis import given, strategies as st

from repl_fx.graph.size_limits import Limit, limits_of, needed_beside, those_beside

A, B, C = sympy.symbols("a b c", integer=True, positive=True)
EXAMPLES, OWNERS = {"a": 32, "b": 48, "c": 32}, {"a": 0, "b": 0, "c": 1}


def _limits(*conditions: object) -> tuple[list[str], list[str]]:
    places = {condition: f" (at line {number})" for number, condition in enumerate(conditions)}
    rules, pinned = limits_of([Limit.of(*known) for known in places.items()], EXAMPLES, OWNERS)
    return [f"{rule.condition}{rule.place}" for rule in rules], pinned


def test_conditions_on_one_size_are_one_rule() -> None:
    halves = sympy.Eq(2 * sympy.floor(A / 2), A), sympy.Eq(4 * sympy.floor(A / 4), A)
    assert _limits(*halves) == (["a % 4 == 0 (at line 0)"], [])
    assert _limits(A >= 5, A <= 700) == (["a >= 5 (at line 0)", "a <= 700 (at line 1)"], [])


def test_what_holds_for_every_size_is_no_rule() -> None:
    assert _limits(A + B > 0) == ([], [])


def test_a_size_that_can_be_no_other_is_pinned_where_the_rest_is_of_its_tensor() -> None:
    assert _limits(sympy.Eq(A * B, 32 * 48))[1] == ["a", "b"]
    assert _limits(sympy.Eq(sympy.floor(A / 5), 6)) == ([], ["a"])
    # Two inputs change together.
    rules, pinned = _limits(sympy.Eq(A, C))
    assert (rules, pinned) == (["a == c (at line 0)"], [])


def test_a_condition_between_sizes_stays_one() -> None:
    rules, pinned = _limits(C <= A)
    assert not pinned and rules in (["c <= a (at line 0)"], ["a >= c (at line 0)"])


def test_a_size_beyond_those_that_are_tried_keeps_its_condition() -> None:
    long = sympy.Symbol("long", integer=True, positive=True)
    rules, pinned = limits_of([Limit.of(long >= 150_000, " (at line 1)")], {"long": 160_000}, {"long": 0})
    assert (rules[0].condition, rules[0].names, len(rules), pinned) == ("long >= 150000", ("long",), 1, [])


def test_a_number_that_sizes_are_multiplied_with_is_none_that_they_are_compared_with() -> None:
    assert Limit.of(sympy.Ne(9408 * A, B + 3), "").largest == 3


def test_a_size_of_none_says_nothing_of_the_others() -> None:
    # Of half the example's sizes, which are no multiples of eight, the condition holds for nothing.
    eighths = sympy.Eq(A * B * C, 64 * C * sympy.floor(A / 8) * sympy.floor(B / 8))
    rules, pinned = limits_of([Limit.of(eighths, "")], {"a": 24, "b": 40, "c": 2}, {"a": 0, "b": 0, "c": 0})
    assert sorted(rule.condition for rule in rules) == ["a % 8 == 0", "b % 8 == 0"] and not pinned


def _one(condition: str, example: int) -> list[str]:
    known = [Limit(part, ("n",), "") for part in condition.split(" and ")]
    return [rule.condition for rule in limits_of(known, {"n": example})[0]]


def test_sizes_that_come_in_runs_are_one_rule() -> None:
    # Strides of 8 and 16 that come to the same, as where features are folded into patches of two.
    assert _one("2*((15 + n) // 16) == 1 + (n - 1) // 8", 64) == ["-n % 16 <= 7"]
    assert _one("n % 16 in (3, 4, 5) and n >= 20 and n <= 101", 35) == ["(n - 35) % 16 < 3", "n >= 20", "n <= 101"]


def test_multiples_that_are_left_out_are_one_rule() -> None:
    assert _one("n % 8 == 0 and 7*((24 + n) // 28) - n // 4 > 0 and n // 4 >= 8", 64) == [
        "n % 8 == 0",
        "n % 56 != 0",
        "n >= 32",
    ]


def test_sizes_that_are_missing_in_a_row_are_no_multiples() -> None:
    assert _one("n // 8 % 2 == 0 and n >= 32 and n <= 55", 32) == ["(n - 32) % 16 < 8", "n >= 32", "n <= 55"]
    assert _one("n % 4 == 0 and n // 8 % 4 > 1 and n < 80", 16) == [
        "n % 4 == 0",
        "n // 8 % 4 > 1",
        "n < 80",
    ]


def test_a_number_of_quotients_is_that_of_as_many_sizes() -> None:
    assert _one("n // 64 <= 8", 100) == ["n <= 575"]
    assert _one("7*((24 + n) // 28) < 280", 224) == ["n <= 1095"]


def test_sizes_without_a_pattern_keep_their_conditions() -> None:
    assert _one("n != 5 and n < 40", 12) == ["n != 5", "n < 40"]
    assert _one("n // 3 in (1, 7, 8, 20)", 24) == ["n // 3 in (1, 7, 8, 20)"]


@given(
    period=st.integers(1, 40), length=st.integers(1, 40), offset=st.integers(0, 40), gap=st.integers(2, 99),
    least=st.integers(0, 150), most=st.integers(100, 700), example=st.integers(1, 600), data=st.data(),
)  # fmt: skip
def test_rules_say_what_the_conditions_do(
    period: int, length: int, offset: int, gap: int, least: int, most: int, example: int, data: st.DataObject
) -> None:
    parts = [f"(n - {offset}) % {period} < {length}", f"n % {gap} != 0", f"n >= {least}", f"n <= {most}"]
    chosen = data.draw(st.lists(st.sampled_from(parts), min_size=1, unique=True))
    rules = " and ".join(_one(" and ".join(chosen), example)) or "True"
    assert [eval(rules, {"n": n}) for n in range(1, 1500)] == [
        eval(" and ".join(chosen), {"n": n}) for n in range(1, 1500)
    ]


def test_limits_of_sizes_that_take_one_way_alone_are_none() -> None:
    ways = [Limit("-a % 64 <= 7", ("a",), ""), Limit("a != b", ("a", "b"), "")]
    rules = [Limit("-a % 16 <= 7", ("a",), ""), Limit("a <= 96", ("a",), ""), Limit("b % 16 == 0", ("b",), "")]
    assert those_beside(rules, ways, EXAMPLES | {"a": 64}) == rules[1:]
    assert those_beside(rules, ways[1:], EXAMPLES) == rules


def test_limits_far_from_the_example_stay() -> None:
    rules, ways = [Limit("a <= 512", ("a",), "")], [Limit("a != 1", ("a",), "")]
    assert those_beside(rules, ways, EXAMPLES) == rules


def test_conditions_that_hold_wherever_others_do_are_not_needed() -> None:
    n, m = sympy.symbols("n m", integer=True, positive=True)
    few, more = Limit.of(n >= 7, ""), Limit.of(n >= 8, "")
    assert needed_beside(few, [], {"n": 12}) and not needed_beside(few, [more], {"n": 12})
    assert needed_beside(Limit.of(sympy.Ne(n, 37), ""), [more], {"n": 12})
    assert needed_beside(Limit.of(n <= m, ""), [more], {"n": 12, "m": 12})
    assert not needed_beside(Limit("n <= n + m", ("m", "n"), ""), [], {"n": 12, "m": 12})

"""Conditions of many operators as one rule for each size."""

from __future__ import annotations

import sympy

from repl_fx.tracing.size_limits import Limit, limits_of

A, B, C = sympy.symbols("a b c", integer=True, positive=True)
EXAMPLES, OWNERS = {"a": 32, "b": 48, "c": 32}, {"a": 0, "b": 0, "c": 1}


def _limits(*conditions: object) -> tuple[list[str], list[str]]:
    places = {condition: f" (at line {number})" for number, condition in enumerate(conditions)}
    rules, pinned = limits_of(places, EXAMPLES, OWNERS)
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
    rules, pinned = limits_of({long >= 150_000: " (at line 1)"}, {"long": 160_000}, {"long": 0})
    assert (rules[0].condition, rules[0].names, len(rules), pinned) == ("long >= 150000", ("long",), 1, [])


def test_a_number_that_sizes_are_multiplied_with_is_none_that_they_are_compared_with() -> None:
    assert Limit.of(sympy.Ne(9408 * A, B + 3), "").largest == 3


def test_a_size_of_none_says_nothing_of_the_others() -> None:
    # Of half the example's sizes, which are no multiples of eight, the condition holds for nothing.
    eighths = sympy.Eq(A * B * C, 64 * C * sympy.floor(A / 8) * sympy.floor(B / 8))
    rules, pinned = limits_of({eighths: " (at line 0)"}, {"a": 24, "b": 40, "c": 2}, {"a": 0, "b": 0, "c": 0})
    assert sorted(rule.condition for rule in rules) == ["a % 8 == 0", "b % 8 == 0"] and not pinned

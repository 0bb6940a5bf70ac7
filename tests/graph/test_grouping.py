"""Groups by a key."""

from __future__ import annotations

from repl_fx.graph.grouping import grouped


def test_values_of_one_key_are_together_in_the_order_in_which_they_come() -> None:
    groups = grouped((len(word), word) for word in ("three", "a", "seven", "to", "b"))
    assert list(groups.items()) == [(5, ["three", "seven"]), (1, ["a", "b"]), (2, ["to"])]


def test_nothing_has_no_groups() -> None:
    assert grouped(()) == {}

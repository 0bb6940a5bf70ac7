"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest

from repl_fx.display.numbers import change, count, milliseconds, several, share, size, small


def test_milliseconds() -> None:
    shown = [milliseconds(seconds) for seconds in (0.1234, 0.01234, 0.001234, 0.0001234, 12.34)]
    assert shown == ["123", "12.3", "1.23", "0.123", "12340"]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "-"),
        (0, "0"),
        (999, "999"),
        (1000, "1.00 k"),
        (111_840, "112 k"),
        (999_499, "999 k"),
        (999_500, "1.00 M"),
        (1_018_762, "1.02 M"),
        (8_030_261_248, "8.03 G"),
        (5 * 10**18, "5000 P"),
    ],
)
def test_counts(number: int | None, text: str) -> None:
    assert count(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(None, "-"), (0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (4_075_048, "3.89 MiB"), (2**40, "1.00 TiB")],
)
def test_sizes(number: int | None, text: str) -> None:
    assert size(number) == text


def test_shares_and_changes() -> None:
    assert share(1, 4) == "25.0 %"
    assert share(1, 0) == share(None, 4) == "-"
    assert change(200, 100) == "-50.0 %"
    assert change(100, 110) == "+10.0 %"
    assert change(10**6, 10**6 + 1) == "0.0 %"
    assert change(0, 100) == change(None, 1) == "-"


def test_small_numbers() -> None:
    assert [small(x) for x in (0.0, 1.26e-7, math.inf, math.nan)] == ["0", "1.3e-07", "inf", "nan"]


def test_one_thing_has_no_plural() -> None:
    assert [several(number, "thread") for number in (None, 0, 1, 1797)] == [
        "- threads",
        "0 threads",
        "1 thread",
        "1,797 threads",
    ]

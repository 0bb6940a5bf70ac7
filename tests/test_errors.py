"""Errors in one line."""

from __future__ import annotations

from repl_fx.errors import first_line, one_line


def test_the_first_line_of_an_error_that_says_something() -> None:
    assert first_line(ValueError("\n  \x1b[31mred\x1b[0m  \nmore")) == "red"
    assert one_line(ValueError("\n  \x1b[31mred\x1b[0m  \nmore")) == "ValueError: red"


def test_an_error_without_a_message_is_its_class() -> None:
    assert first_line(KeyError()) == one_line(KeyError()) == "KeyError"

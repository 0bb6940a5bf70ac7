"""Tests for repl_fx.errors: errors in one line, those of code that is not repl-fx's, and defects of repl-fx."""

from __future__ import annotations

import pytest

from repl_fx.errors import BadInput, ForeignError, first_line, foreign_code, one_line


def test_the_first_line_of_an_error_that_says_something() -> None:
    assert first_line(ValueError("\n  \x1b[31mred\x1b[0m  \nmore")) == "red"
    assert one_line(ValueError("\n  \x1b[31mred\x1b[0m  \nmore")) == "ValueError: red"


def test_a_message_is_one_line_whatever_names_are_in_it() -> None:
    assert str(BadInput("a\nb\x00 \udc80 \u2028 größe")) == r"a\nb\x00 \udc80 \u2028 größe"


def test_an_error_without_a_message_is_its_class() -> None:
    assert first_line(KeyError()) == one_line(KeyError()) == "KeyError"


@pytest.mark.parametrize("problem", [ValueError("not\nhere"), AssertionError(""), BadInput("of another call")])
def test_what_foreign_code_raises(problem: Exception) -> None:
    with pytest.raises(ForeignError) as caught, foreign_code():
        raise problem
    assert caught.value.problem is problem and caught.value.__cause__ is problem
    assert str(caught.value) == one_line(problem)


def test_an_assertion_of_repl_fx_stays_one() -> None:
    ours = {"__name__": "repl_fx.passes.some_pass"}
    exec("def fail(kind): raise kind('a defect')", ours)
    with pytest.raises(AssertionError, match="a defect"), foreign_code():
        ours["fail"](AssertionError)  # type: ignore[operator]
    # Any other may be about what repl-fx calls for that code.
    with pytest.raises(ForeignError, match="TypeError: a defect"), foreign_code():
        ours["fail"](TypeError)  # type: ignore[operator]


def test_a_foreign_error_is_told_once() -> None:
    problem = ValueError("no such shape")
    with pytest.raises(ForeignError) as caught, foreign_code(), foreign_code():
        raise problem
    assert caught.value.problem is problem


def test_interrupts_are_no_errors() -> None:
    with pytest.raises(KeyboardInterrupt), foreign_code():
        raise KeyboardInterrupt

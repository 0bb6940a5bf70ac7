"""Flags that come from the fields of a settings class."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import typer
from msgspec import Meta
from typer.testing import CliRunner

from repl_fx.cli.flags import with_flags


class _Settings(msgspec.Struct, kw_only=True):
    rate: Annotated[float, Meta(gt=0, description="A rate.")] = 0.5
    fast: Annotated[bool, Meta(description="Whether it is fast.")] = True
    kind_of: Annotated[Literal["a", "b"], Meta(description="A kind.")] = "a"
    count: Annotated[int | None, Meta(description="A count.")] = None
    names: Annotated[tuple[str, ...], Meta(description="Names.")] = ()
    hidden: Annotated[int, Meta(description="Has no flag.")] = 1


def _run(*arguments: str) -> tuple[dict[str, Any], str]:
    seen: dict[str, Any] = {}
    # As the command line of repl-fx: plain help.
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)

    @app.command()
    @with_flags(_Settings, without=("hidden",), defaults={"names": ("x", "y")})
    def command(name: str, **given: Any) -> None:
        """A command."""
        seen.update(given, name=name)

    result = CliRunner().invoke(app, arguments)
    return seen, result.output


def test_each_field_is_a_flag_and_none_where_it_is_not_given() -> None:
    assert _run("x")[0] == {"name": "x", "rate": None, "fast": None, "kind_of": None, "count": None, "names": None}
    given = _run("x", "--rate", "2", "--no-fast", "--kind-of", "b", "--count", "3", "--names", "a", "--names", "b")[0]
    assert given.pop("names") == ["a", "b"]
    assert given == {"name": "x", "rate": 2.0, "fast": False, "kind_of": "b", "count": 3}


def test_help_has_the_lines_and_the_defaults() -> None:
    shown = " ".join(_run("--help")[1].split())
    assert "--kind-of" in shown
    assert "A rate." in shown and "[default: 0.5]" in shown and "[default: true]" in shown
    assert "[default: ('x', 'y')]" in shown and "hidden" not in shown


def test_another_kind_of_value_is_refused() -> None:
    seen, output = _run("x", "--rate", "quick")
    assert not seen
    assert "--rate" in output

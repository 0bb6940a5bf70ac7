"""Flags that come from the fields of a settings class."""

from __future__ import annotations

from inspect import Signature, signature
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints
from unittest.mock import Mock

import msgspec
import pytest
import typer
from msgspec import Meta
from typer.testing import CliRunner

from repl_fx.cli import flags
from repl_fx.cli.flags import File, Switch, flags_of


class _Settings(msgspec.Struct, kw_only=True):
    """Settings.

    Attributes:
        rate: A rate.
        fast: Whether it is fast, which takes more words than a line has room for, so that
            they go on in the next.
        kind_of: A kind.
        count: A count.
        names: Names.
        hidden: Has no flag.
        dry: Stay dry.
        place: A place.
    """

    rate: Annotated[float, Meta(gt=0)] = 0.5
    fast: bool = True
    kind_of: Literal["a", "b"] = "a"
    count: Annotated[int, Meta(ge=1)] | None = None
    names: tuple[str, ...] = ()
    hidden: int = 1
    dry: Switch = False
    place: File | None = None


def _run(*arguments: str) -> tuple[dict[str, Any], str]:
    seen: dict[str, Any] = {}
    # As the command line of repl-fx: plain help.
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)

    def command(name: str, **given: Any) -> None:
        """A command."""
        seen.update(given, name=name)

    name, _ = signature(command, eval_str=True).parameters.values()
    parameters = [name, *flags_of(_Settings, without=("hidden",), defaults={"names": ("x", "y")})]
    command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    app.command()(command)
    result = CliRunner().invoke(app, arguments)
    return seen, result.output


def test_each_field_is_a_flag_and_none_where_it_is_not_given() -> None:
    fields = [name for name in _Settings.__struct_fields__ if name != "hidden"]
    assert _run("x")[0] == {"name": "x", **dict.fromkeys(fields)}
    flags = ("--rate", "2", "--no-fast", "--kind-of", "b", "--count", "3", "--names", "a", "--names", "b", "--dry")
    given = _run("x", *flags, "--place", "a/b")[0]
    assert given.pop("names") == ["a", "b"]
    assert given == {
        "name": "x",
        "rate": 2.0,
        "fast": False,
        "kind_of": "b",
        "count": 3,
        "dry": True,
        "place": Path("a/b"),
    }


def test_help_has_the_lines_and_the_defaults() -> None:
    shown = " ".join(_run("--help")[1].split())
    assert "--kind-of" in shown
    assert "A rate." in shown and "[default: 0.5]" in shown and "[default: true]" in shown
    assert "[default: ('x', 'y')]" in shown and "hidden" not in shown
    assert "than a line has room for, so that they go on in the next." in shown
    assert "--fast / --no-fast" in shown and "--dry Stay dry." in shown and "--place FILE" in shown


def test_another_kind_of_value_is_refused() -> None:
    for name, value in (("--rate", "quick"), ("--kind-of", "c"), ("--count", "0"), ("--no-dry", "")):
        seen, output = _run("x", name, value)
        assert not seen
        assert name in output


def test_annotations_are_evaluated_once_for_all_flags_of_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    class Many(_Settings, kw_only=True):
        more: int = 0

    asked = Mock(side_effect=get_type_hints)
    monkeypatch.setattr(flags, "get_type_hints", asked)
    for name in Many.__struct_fields__:
        assert flags.flag(Many, name)
    assert asked.call_count == 1

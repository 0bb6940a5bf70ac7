"""Help: sections, and examples that are right."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Any

import pytest
import typer

from repl_fx.cli import app
from repl_fx.cli.flags import _SECTIONS
from repl_fx.training.train_config import CompressConfig

if TYPE_CHECKING:
    from .conftest import Run

GROUP: Any = typer.main.get_command(app)


def test_commands_are_in_sections(run: Run) -> None:
    shown = run("--help").stdout
    titles = re.findall(r"^(\S.*):$", shown, re.MULTILINE)
    assert titles == ["Options", "Look at a model", "Make it smaller", "Measure and prove"]
    assert all(re.search(rf"^  {name}  ", shown, re.MULTILINE) for name in GROUP.commands)
    assert "Examples:\n    repl-fx inspect timm:vit_tiny_patch16_224\n" in shown


def test_ranges_are_shown_that_say_something(run: Run) -> None:
    shown = run("train", "--help").stdout
    assert "[x>=1]" in " ".join(shown.split()) and "922" not in shown and "922" not in run("inspect", "--help").stdout


@pytest.mark.parametrize("name", sorted(GROUP.commands))
def test_each_command_has_examples_that_can_be_typed(run: Run, name: str) -> None:
    shown = run(name, "--help").stdout
    lines = re.findall(r"^    (repl-fx .*)$", shown.partition("Examples:\n")[2], re.MULTILINE)
    assert lines and max(map(len, lines)) <= 110
    for line in lines:
        program, command, *arguments = shlex.split(line)
        assert (program, command) == ("repl-fx", name)
        # Nothing is run: options and arguments are read alone.
        GROUP.commands[name].make_context(name, arguments)


def test_options_of_a_section_stand_together(run: Run) -> None:
    shown = run("train", "--help").stdout
    titles = re.findall(r"^(\S.*):$", shown, re.MULTILINE)
    assert titles[:2] == ["Arguments", "Options"] and titles[-1] == "Output"
    assert set(_SECTIONS) <= set(titles)
    output = shown.partition("\nOutput:")[2]
    assert "--json" in output and "--help" in output and "--lr" not in output


def test_the_sections_hold_settings_that_there_are() -> None:
    names = [name for section in _SECTIONS.values() for name in section]
    assert len(names) == len(set(names)) and set(names) <= set(CompressConfig.__struct_fields__)

"""Pages that list what is in the code have all of it, and no more."""

from __future__ import annotations

import importlib.util
import re
from types import ModuleType

import pytest

import repl_fx
from repl_fx.cli import app
from tests.docs.pages import ROOT


def script(name: str) -> ModuleType:
    """A script of docs/, imported."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_of_the_folders_is_that_of_the_imports() -> None:
    pytest.importorskip("grimp")
    architecture = script("draw_architecture")
    page = architecture.PAGE.read_text()
    assert architecture.drawn(page) == page


def test_every_folder_is_in_the_table_of_the_architecture() -> None:
    told = set(re.findall(r"^\| `(\w+)[/.]", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE))
    folders = {path.name for path in (ROOT / "repl_fx").iterdir() if (path / "__init__.py").exists()}
    assert told - {"pipeline"} == folders


def test_the_table_of_debug_variables_is_complete() -> None:
    read = set(re.findall(r"REPL_FX_[A-Z_]+", (ROOT / "repl_fx" / "config.py").read_text()))
    told = set(re.findall(r"`(REPL_FX_[A-Z_]+)`", (ROOT / "docs" / "debugging.md").read_text()))
    assert read == told


def test_the_pictures_are_what_the_scripts_draw() -> None:
    pictures = script("draw_pictures")
    assert (ROOT / "docs/pictures/pipeline.svg").read_text() == pictures.pipeline()
    assert (ROOT / "docs/pictures/replaced_blocks.svg").read_text() == pictures.replaced_blocks()


def test_every_public_name_is_in_the_reference() -> None:
    told = re.findall(r"^::: repl_fx\.(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert len(told) == len(set(told))
    assert set(told) == set(vars(repl_fx)["__all__"])


def test_every_command_is_in_the_table() -> None:
    told = re.findall(r"`repl-fx (\w+)\b", (ROOT / "docs" / "commands.md").read_text())
    assert {name.name for name in app.registered_commands} <= set(told)

"""`repl-fx doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.results import document, one_line
from tests.environment.installed import install
from tests.environment.test_examination import examined

if TYPE_CHECKING:
    from .conftest import Run


def test_a_machine_on_which_all_is_fine(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examined(
        tmp_path, monkeypatch, "Requires-Dist: msgspec", "Provides-Extra: zoo", "Requires-Dist: nix; extra == 'zoo'"
    )
    shown = run("doctor")
    assert shown.exit_code == 0, shown.stderr
    assert "pip install 'repl-fx[zoo]'" in shown.stdout and shown.stdout.endswith("repl-fx can run here\n")
    found = document(run("doctor", "--json").stdout)
    assert found["fine"] and found["extras"][0]["missing"] == ["nix"]


def test_a_broken_package_of_the_core_is_exit_code_1(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "repl-fx-test-broken", "1.0", code="1 / 0")
    examined(tmp_path, monkeypatch, "Requires-Dist: repl-fx-test-broken")
    line = one_line(run("doctor"), code=1)
    assert line.startswith("repl-fx-test-broken cannot be imported (ZeroDivisionError") and "pip install" in line
    told = run("doctor", "--json")
    assert told.exit_code == 1 and document(told.stdout)["problems"] == [line]

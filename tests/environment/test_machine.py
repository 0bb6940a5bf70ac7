"""The machine, also where it does not say what it is."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest

from repl_fx.environment import machine


def test_a_cpu_has_a_name_also_where_the_system_does_not_say_it(monkeypatch: pytest.MonkeyPatch) -> None:
    known = machine.cpu_model()
    assert known.strip() == known != ""

    def read_text(self: Path) -> str:
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", read_text)
    assert machine.cpu_model() == (platform.processor() or platform.machine())


def test_memory_is_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    found = machine.memory_bytes()
    assert found is not None and found > 2**28

    def sysconf(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr("os.sysconf", sysconf)
    assert machine.memory_bytes() is None


@pytest.mark.parametrize(("said", "version"), [("echo 570.1; echo 570.1", "570.1"), ("exit 9", None), ("true", None)])
def test_the_driver_is_what_its_tool_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, version: str | None
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{said}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.driver_version() == version
    tool.unlink()
    assert machine.driver_version() is None


def test_the_compiler_is_that_of_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    assert machine.compiler() is None
    monkeypatch.setenv("CXX", sys.executable)
    assert machine.compiler() == sys.executable
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.compiler() is None


def test_headers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    assert not machine.python_headers()
    (tmp_path / "Python.h").touch()
    assert machine.python_headers()

"""The commands together: help, version, and a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import repl_fx

if TYPE_CHECKING:
    from .conftest import Run


def test_version_and_help(run: Run) -> None:
    assert run("--version").stdout == f"repl-fx {repl_fx.__version__}\n"
    for arguments in ((), ("--help",)):
        result = run(*arguments)
        assert result.exit_code == 0
        for command in ("inspect", "transform", "bench", "export", "verify"):
            assert command in result.stdout
            assert run(command, "--help").exit_code == 0


@pytest.mark.slow
def test_as_a_process(model_file: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(repl_fx.__file__).parents[1]), "OMP_NUM_THREADS": "1"}

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "repl_fx", "transform", model_file.name, "-o", "out", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    # What C code of a model's prints, too, is no part of the document.
    said = ("import os", r"os.write(1, b'by number\n')", "os.system('echo by a child')", "print('by name')")
    model_file.write_text("\n".join((*said, model_file.read_text())))
    words = ("by number", "by a child", "by name")
    done = call()
    assert done.returncode == 0, done.stderr
    assert "next:    repl-fx export out" in done.stdout and all(word in done.stdout for word in words)
    assert all(" … " in line for line in done.stderr.splitlines()), done.stderr
    again = call("--json")
    line = "out is not empty; choose another place, or replace it with --force (force=True)"
    assert again.returncode == 2 and json.loads(again.stdout) == {"error": line, "exit_code": 2}
    assert again.stderr == f"repl-fx: error: {line}\n"
    one = call("--json", "--dry-run", "--no-check")
    assert one.returncode == 0 and json.loads(one.stdout)["directory"] is None
    assert all(word in one.stderr for word in words)


@pytest.mark.parametrize("arguments", [("--help",), ("train", "--help"), ("transform", "--colour")])
def test_help_and_a_mistyped_option_do_not_wait_for_torch(arguments: tuple[str, ...]) -> None:
    start = "import sys; sys.modules['torch'] = None; from repl_fx.cli import app; app(sys.argv[1:])"
    environment = {**os.environ, "PYTHONPATH": str(Path(repl_fx.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", start, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == (0 if "--help" in arguments else 2), done.stderr
    assert "repl-fx" in done.stdout + done.stderr

"""Paths in commands that are typed as a message says."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from repl_fx.display.shell import typed


@pytest.mark.parametrize("name", ["out", "a b", "~", "-x", "it's", "$HOME", "ü;ls", "a\nb"])
def test_a_shell_reads_the_path_that_is_meant(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    done = subprocess.run(f"ls -d {typed(name)}/.", shell=True, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert typed(Path("out")) == "out"

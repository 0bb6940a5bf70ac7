"""The result of a command: its one line of an error, or its one document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer.testing import Result

if TYPE_CHECKING:
    from .conftest import Run


def document(text: str) -> dict[str, Any]:
    """The one JSON document that `text` is."""
    found = json.loads(text)
    assert isinstance(found, dict)
    return found


def one_line(result: Result, code: int = 2) -> str:
    """The one line of an error."""
    assert result.exit_code == code, (result.exit_code, result.stderr)
    lines = [line for line in result.stderr.splitlines() if " … " not in line]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("repl-fx: error: ")
    assert "Traceback" not in result.stderr
    return lines[0].removeprefix("repl-fx: error: ")


def refused(run: Run, tmp_path: Path, *arguments: object) -> str:
    """The line with which a transform refuses; checks that it writes nothing."""
    before = sorted(tmp_path.rglob("*"))
    line = one_line(run("transform", *arguments, "-o", tmp_path / "out"))
    after = [path for path in sorted(tmp_path.rglob("*")) if "__pycache__" not in path.parts]
    assert after == before
    return line

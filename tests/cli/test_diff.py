"""`repl-fx diff`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tests.cli.results import document, one_line

if TYPE_CHECKING:
    from .conftest import Run


def test_an_artifact_and_its_plan_are_equal(run: Run, artifact: Path) -> None:
    same = run("diff", artifact, artifact / "plan.json")
    assert (same.exit_code, same.stderr) == (0, "") and "are equal" in same.stdout
    assert document(run("diff", artifact, artifact, "--json").stdout)["equal"] is True


def test_plans_that_differ_are_exit_code_1(run: Run, artifact: Path, tmp_path: Path) -> None:
    plan = json.loads((artifact / "plan.json").read_text())
    plan["replacements"] = plan["replacements"][1:]
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(plan))
    differ = run("diff", artifact, changed)
    assert (differ.exit_code, differ.stderr) == (1, "")
    row = next(line.split() for line in differ.stdout.splitlines() if line.startswith("blocks."))
    assert row[1] == "replaced," and row[-1] == "kept"
    told = run("diff", artifact, changed, "--json")
    assert told.exit_code == 1 and document(told.stdout)["equal"] is False


def test_what_is_no_plan_is_refused(run: Run, artifact: Path, tmp_path: Path) -> None:
    assert "does not exist" in one_line(run("diff", artifact, tmp_path / "absent"))
    assert "is no artifact" in one_line(run("diff", artifact, tmp_path))

"""`repl-fx inspect`: what repeats and what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tests.cli.results import document

if TYPE_CHECKING:
    from .conftest import Run


def test_inspect_shows_repeats_and_costs(run: Run, model_file: Path) -> None:
    result = run("inspect", model_file)
    assert result.exit_code == 0
    assert "captured by torch.export" in result.stdout
    assert "Repeats" in result.stdout and "Costs" in result.stdout
    assert max(len(line) for line in result.stdout.splitlines() if str(model_file) not in line) <= 80


def test_inspect_json(run: Run, model_file: Path) -> None:
    found = document(run("inspect", model_file, "--json").stdout)
    (repeat,) = found["repeats"]
    parameters = 16 + (8 * 16 + 16) + (16 * 8 + 8)
    assert (repeat["copies"], repeat["parameters_per_block"]) == (5, parameters)
    assert found["costs"]["parameters"] == 5 * parameters + 27
    assert found["costs"]["flops"] == 2 * 2 * (5 * 2 * 8 * 16 + 8 * 3)
    assert repeat["flops"] == 2 * 2 * 5 * 2 * 8 * 16


def test_inspect_of_an_artifact_shows_what_was_done(run: Run, artifact: Path) -> None:
    found = document(run("inspect", artifact, "--json").stdout)
    assert [block["status"] for block in found["blocks"]] == ["kept", "replaced", "kept", "replaced", "kept"]
    assert found["costs"]["after"]["parameters"] < found["costs"]["before"]["parameters"]
    shown = run("inspect", artifact)
    assert shown.exit_code == 0
    assert "rewritten Net" in shown.stdout and "Before and after" in shown.stdout


def test_inspect_where_nothing_repeats(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "flat.py"
    file.write_text("from torch import nn\ndef model(): return nn.Linear(4, 4)\n")
    result = run("inspect", file, "--input-shape", "2x4")
    assert result.exit_code == 0
    assert "nothing repeats" in result.stdout

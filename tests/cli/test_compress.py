"""`repl-fx compress`: one command from trained weights to a verified file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.results import document, one_line
from tests.cli.test_train import MODEL

if TYPE_CHECKING:
    from .conftest import Run

GIVEN = ("--budget", "flops=0.9", "--samples", "64", "--device", "cpu", "--batch-size", "256")


@pytest.mark.slow
def test_a_model_is_compressed_in_one_command(run: Run, tmp_path: Path) -> None:
    spec, out = tmp_path / "model.py", tmp_path / "out"
    spec.write_text(MODEL)
    result = run("compress", spec, "-o", out, *GIVEN, "--json")
    assert result.exit_code == 0, result.stderr
    found = document(result.stdout)
    assert found["directory"] == str(out) and list(found["figures"]) == ["original", "cut"]
    assert found["budget"]["flops"]["reached"] <= 0.9
    assert {fit["block"] for fit in found["fits"]} <= {"blocks.0", "blocks.1", "blocks.2"} and found["fits"]
    assert found["exported"][""]["verification"]["equivalent"] is True
    replaced = {one["block"] for one in found["blocks"] if one["status"] == "replaced"}
    assert replaced == {fit["block"] for fit in found["fits"]}
    again = run("compress", out, "--resume")
    assert again.exit_code == 0 and "cut" in again.stdout and "model.onnx" not in again.stdout, again.stderr
    assert "Blocks" in again.stdout and "replaced" in again.stdout
    # A run of a version that kept no blocks.
    file = out / "compression" / "result.json"
    kept = json.loads(file.read_text())
    del kept["blocks"]
    file.write_text(json.dumps(kept))
    before = run("compress", out, "--resume")
    assert before.exit_code == 0 and "Figures" in before.stdout and "Blocks" not in before.stdout, before.stderr
    assert "has a compression already" in one_line(run("compress", spec, "-o", out, *GIVEN))
    assert "No such option: --every" in run("compress", spec, "--every", "2").stderr


@pytest.mark.parametrize("flags", [("--epochs", "2"), ("--teacher-values", "0.5")])
def test_flags_of_healing_alone_do_nothing_without_it(run: Run, tmp_path: Path, flags: tuple[str, str]) -> None:
    spec, out = tmp_path / "model.py", tmp_path / "out"
    spec.write_text(MODEL)
    said = one_line(run("compress", spec, "-o", out, *GIVEN, *flags))
    assert f"{flags[0]} does nothing without --heal; give that, or leave it out" in said and not out.exists()
    # With it, it goes on to what is wrong next.
    assert "none" in one_line(run("compress", spec, "-o", out, *GIVEN, *flags, "--heal", "--data", "none"))

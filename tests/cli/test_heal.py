"""`repl-fx heal`: from a cut model to a healed one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import repl_fx
from tests.cli.results import document, one_line
from tests.cli.test_train import MODEL

if TYPE_CHECKING:
    from .conftest import Run

FAST = ("--batch-size", "256", "--device", "cpu", "--no-augment")


@pytest.mark.slow
def test_a_cut_model_is_healed_and_goes_on(run: Run, tmp_path: Path) -> None:
    spec, out = tmp_path / "model.py", tmp_path / "out"
    spec.write_text(MODEL)
    assert run("transform", spec, "-o", out, "--surrogate", "bottleneck", "-q").exit_code == 0
    result = run("heal", out, *FAST, "--target-weight", "0", "--lr", "0.01", "--json")
    assert result.exit_code == 0, result.stderr
    found = document(result.stdout)
    assert found["directory"] == str(out) and found["steps"] == 5
    assert list(found["figures"]) == ["original", "cut", "healed"]
    assert all(figures.keys() == {"loss", "accuracy"} for figures in found["figures"].values())
    again = run("heal", out, "--resume")
    assert again.exit_code == 0 and "healed" in again.stdout, again.stderr
    assert repl_fx.load(out) is not None
    assert "has a run already; go on with --resume" in one_line(run("heal", out, *FAST))
    assert "No such option: --compare" in run("heal", out, "--compare").stderr


def test_what_was_not_cut_cannot_be_healed(run: Run, tmp_path: Path) -> None:
    spec = tmp_path / "model.py"
    spec.write_text(MODEL)
    assert "is no directory; give the directory a transform wrote" in one_line(run("heal", spec))

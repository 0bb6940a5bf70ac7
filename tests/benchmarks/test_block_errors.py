"""The benchmark of the errors that surrogates leave, at a size that says nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import block_errors
from benchmarks.training.models import vit
from benchmarks.training.tasks import Task
from repl_fx.training.train_config import TrainConfig

TASK = Task(
    "digits/vit",
    "",
    lambda: vit(8, 1, patch=4, width=16, depth=4, heads=2),
    TrainConfig(epochs=1, batch_size=32, device="cpu", log_every=1),
    (128, 64),
)


@pytest.mark.slow
def test_more_hidden_units_leave_less_of_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_errors, "tasks", lambda scale: {TASK.name: TASK})
    given = ["--scale", "cpu", "--only", "text/*", "digits/*", "--out", str(tmp_path), "--docs", str(tmp_path)]
    assert block_errors.main(given) == 0
    table = [line.split("|")[1:-1] for line in (tmp_path / "block_errors.md").read_text().splitlines() if "|" in line]
    rows = {cells[0].strip(): cells[1:] for cells in table}
    assert [name for name in rows if "narrow" in name] == [f"narrow ratio={r:g}" for r in block_errors.RATIOS]
    medians = [float(rows[f"narrow ratio={ratio:g}"][0].split()[0]) for ratio in block_errors.RATIOS]
    assert medians == sorted(medians) and 0 <= medians[0] < medians[-1] < 1
    assert 0 < float(rows["linear"][0].split()[0]) < 1 and rows["linear"][1].strip() == "0.300"


def test_a_network_that_is_not_there_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert block_errors.main(["--scale", "cpu", "--only", "none", "--docs", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: no network is called none; ")
    assert not list(tmp_path.iterdir())

"""The benchmark of schedules: its rows, and the section that it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import schedules


def _record(name: str, seed: int, accuracy: float) -> dict[str, Any]:
    facts = {"task": "digits", "epochs": 9, "machine": "A CPU", "versions": "torch 2"}
    return {**facts, "name": name, "seed": seed, "accuracy": accuracy, "seconds": 4.2}


def test_rows_have_the_mean_and_the_spread_of_their_seeds() -> None:
    records = [_record("original", 0, 90.0), _record("blend, from the start", 0, 80.0), _record("original", 1, 93.0)]
    assert schedules.table(records)[2:] == [
        "| original | 91.50 | 90.00 to 93.00 | 4 |",
        "| blend, from the start | 80.00 | 80.00 to 80.00 | 4 |",
    ]


def test_the_section_is_written_and_what_stands_below_its_tables_stays() -> None:
    once = schedules.written("# Results\n\n## One\n\ntext\n", [_record("original", 0, 90.0)])
    assert once.startswith("# Results\n\n## One\n\ntext\n\n## Schedules\n") and "A CPU, torch 2" in once
    page = once + "\n- A note.\n\n## Two\n\nmore\n"
    again = schedules.written(page, [_record("original", 0, 70.0)])
    assert again.count("## Schedules") == 1 and "| original | 70.00 |" in again and "90.00" not in again
    assert again.endswith("\n- A note.\n\n## Two\n\nmore\n")
    assert schedules.written(again, [_record("original", 0, 70.0)]) == again


def test_runs_that_are_there_are_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[tuple[str, int]] = []

    def run(task: schedules.Task, surrogate: str, settings: Any, seed: int) -> dict[str, float]:
        task.config.changed(**settings)
        done.append((surrogate, seed))
        return {"accuracy": 50.0, "seconds": 1.0}

    monkeypatch.setattr(schedules, "run", run)
    options = ["--out", str(tmp_path / "runs.jsonl"), "--seeds", "2"]
    assert schedules.main(options) == 0 == schedules.main(options)
    assert len(done) == 2 * 9 and done[:3] == [("", 0), ("identity", 0), ("blend", 0)]
    assert len([json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]) == 18
    assert "| `blend`, replaced after 3, restored after 6 | 50.00 |" in capsys.readouterr().out
    assert schedules.main([*options, "--data", str(tmp_path)]) == 2
    assert "or cifar10.npz in" in capsys.readouterr().err

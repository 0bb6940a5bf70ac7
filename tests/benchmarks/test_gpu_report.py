"""The page of the GPU holds what was measured on one, and says of all else that it was not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.gpu_pieces.targets import targets
from benchmarks.gpu_report import main, write_report

DOCS = Path(__file__).resolve().parents[2] / "docs"
TRAIN = {"model": "resnet110", "data": "CIFAR-10", "clock": "wall", "batch": 256}
RATES = {"rates": {"by hand": [100.0], "repl-fx train": [93.0]}, "ratios": [0.93]}


def record(device: str, scale: str = "gpu", **more: Any) -> dict[str, Any]:
    return {"key": "train", "scale": scale, "device": device, "status": "done", "result": TRAIN | RATES, **more}


def row_of(text: str) -> str:
    (row,) = (line for line in text.splitlines() if "as busy as a bare loop" in line)
    return row


def test_without_records_nothing_was_measured(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    assert main([str(tmp_path / "empty.jsonl"), "--docs", str(tmp_path)]) == 0
    text = (tmp_path / "gpu.md").read_text()
    assert all(f"| {one.text} |  | not measured |" in text for one in targets({}))


def test_the_page_of_the_documentation_is_that_of_its_records(tmp_path: Path) -> None:
    assert main([str(DOCS / "gpu.jsonl"), "--docs", str(tmp_path)]) == 0
    assert (tmp_path / "gpu.md").read_text() == (DOCS / "gpu.md").read_text()


def test_a_figure_of_a_cpu_is_in_no_row(tmp_path: Path) -> None:
    write_report([record("cpu"), record("cuda", "toy")], tmp_path)
    text = (tmp_path / "gpu.md").read_text()
    assert row_of(text).endswith("|  | not measured |") and "0.93" not in text
    write_report([record("cuda")], tmp_path)
    assert row_of((tmp_path / "gpu.md").read_text()).endswith("| 93.0% | yes |")


def test_a_piece_that_failed_is_listed(tmp_path: Path) -> None:
    write_report([record("cuda", status="late", error="ended after 9 s")], tmp_path)
    assert "| train | late | ended after 9 s |" in (tmp_path / "gpu.md").read_text()


def test_a_toy_run_says_that_it_is_one(tmp_path: Path) -> None:
    (tmp_path / "gpu.jsonl").write_text(json.dumps(record("cpu", "toy")) + "\n")
    assert main([str(tmp_path / "gpu.jsonl"), "--scale", "toy", "--docs", str(tmp_path)]) == 0
    assert "no figure of it means anything" in (tmp_path / "gpu.md").read_text()

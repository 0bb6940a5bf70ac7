"""Comparisons: which runs there are, and the table of what came out."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from repl_fx.training.comparing import VariantOutcome, comparison_table, members, write_comparison

ROWS = (
    VariantOutcome("original", 3000, {"loss": [0.5, 0.7], "accuracy": [0.9, 0.8]}, [100.0, 110.0]),
    VariantOutcome("depth-pruned", reason="seed 0: the loss is nan"),
    VariantOutcome("rewritten", 2000, {"loss": [0.6], "accuracy": [0.85]}),
)


def _shown() -> str:
    console = Console(width=160, force_terminal=False)
    with console.capture() as caught:
        console.print(comparison_table(ROWS))
    return caught.get()


def test_members_come_seed_by_seed_and_one_is_the_artifacts() -> None:
    found = members(("original", "rewritten"), "rewritten", 5, 2)
    assert [str(member) for member in found] == [
        *("original, seed 5", "rewritten, seed 5", "original, seed 6", "rewritten, seed 6")
    ]
    assert [member.folder for member in found] == [
        *("others/original-seed-5", "", "others/original-seed-6", "others/rewritten-seed-6")
    ]


def test_the_table_has_means_and_spreads_and_reasons() -> None:
    shown = _shown()
    original, pruned, rewritten = (next(line for line in shown.splitlines() if row.variant in line) for row in ROWS)
    assert "3,000" in original and "0.6000 ± 0.1414" in original and "0.8500 ± 0.0707" in original
    assert "105 ± 7" in original
    assert "not trained: seed 0: the loss is nan" in pruned
    assert "0.8500" in rewritten and "±" not in rewritten and " - " in rewritten
    assert "memory" not in shown


def test_rows_are_written_as_json(tmp_path: Path) -> None:
    write_comparison(ROWS, tmp_path / "comparison.json")
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert [row["variant"] for row in found] == ["original", "depth-pruned", "rewritten"]
    assert found[0]["figures"]["accuracy"] == [0.9, 0.8]

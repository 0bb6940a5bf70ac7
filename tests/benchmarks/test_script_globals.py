"""The benchmark of a script's globals runs its scripts."""

from __future__ import annotations

import pytest

from benchmarks import script_globals


@pytest.mark.slow
def test_a_script_with_data_is_timed(capsys: pytest.CaptureFixture[str]) -> None:
    assert script_globals.main(["--runs", "1", "--size", "200000", "--named"]) == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.split()[:2] for row in rows] == [
        [which, what] for which in ("without", "with") for what in ("capture", "transform", "memory")
    ]
    assert all(float(row.split()[2]) > 0 for row in rows if "memory" not in row)

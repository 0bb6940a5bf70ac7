"""Tables of measured costs, and lines on what was not measured."""

from __future__ import annotations

from repl_fx.benchmarking.bench_tables import bench_tables, unmeasured_lines, unsettled_lines
from repl_fx.benchmarking.results import Benchmark, InferenceRow
from tests.benchmarking.test_results import measured
from tests.display.shown import row_of, text_of


def test_measured_times() -> None:
    result = measured(500)
    text, inference = map(text_of, bench_tables(result.to_json()))
    assert "Training, batch 4" in text and "peak" in text
    assert " ".join(row_of(text, "original")) == "original 300 200-400 1.00 13.3 1000 B 100"
    assert " ".join(row_of(text, "rewritten")) == "rewritten 150 100-200 0.50 26.7 500 B 60"
    assert row_of(text, "depth-pruned")[1:] == ["-"] * 6
    kept = text_of(bench_tables(measured().to_json())[0])
    assert "kept for" in kept and row_of(kept, "original")[-3:] == ["4.00", "KiB", "100"]
    lines = [line.split() for line in inference.splitlines()]
    assert ["1", "eager", "rewritten", "10.0", "10.0-10.0", "0.50", "100"] in lines
    assert unmeasured_lines(result.to_json()) == [
        "not measured: depth-pruned, training: a reason",
        "measured in 1 rounds only: rewritten, eager, batch 1: it broke",
    ]


def test_ratios_whose_spread_is_too_wide_are_named() -> None:
    calls = {"original": [1.0] * 10, "steady": [0.8, 0.81] * 5, "shaken": [0.2, 0.9, 1.4, 0.3, 0.6] * 2}
    rows = [InferenceRow(name, 2, "source", None, "eager", seconds) for name, seconds in calls.items()]
    (line,) = unsettled_lines(Benchmark({}, {}, (), tuple(rows)).to_json())
    assert line.startswith("warning: too wide a spread to judge what is taken of the original: shaken, eager, batch 2;")
    assert unsettled_lines(Benchmark({}, {}, (), tuple(rows[:2])).to_json()) == []
    few = [InferenceRow(row.variant, 2, "source", None, "eager", row.samples[:2]) for row in rows[:2]]
    assert "steady, eager, batch 2;" in unsettled_lines(Benchmark({}, {}, (), tuple(few)).to_json())[0]

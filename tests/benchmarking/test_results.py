"""Figures of what was measured."""

from __future__ import annotations

import json

import pytest

from repl_fx.benchmarking.results import (
    Benchmark,
    InferenceRow,
    TrainingRow,
    bench_tables,
    unmeasured_lines,
    unsettled_lines,
)
from repl_fx.benchmarking.training import PARTS, Sizes
from tests.display.shown import row_of, text_of


def _steps(*seconds: float) -> list[dict[str, float]]:
    return [dict.fromkeys(PARTS, one / 3) for one in seconds]


def measured(peak: int | None = None) -> Benchmark:
    """A benchmark of which all that is possible happened."""
    training = (
        TrainingRow("original", 4, "source", None, Sizes(100, 800, 4096, peak and 2 * peak), _steps(0.3, 0.2, 0.4)),
        TrainingRow("rewritten", 4, "in place", None, Sizes(60, 480, 2048, peak), _steps(0.15, 0.2, 0.1)),
        TrainingRow("depth-pruned", 4, None, "a reason"),
    )
    inference = (
        InferenceRow("original", 1, "source", None, "eager", [0.02, 0.04]),
        InferenceRow("rewritten", 1, "folded graph", "it broke", "eager", [0.01]),
        InferenceRow("original", 2, "source", None, "eager", [0.05, 0.05]),
    )
    machine = {"cpu": "a CPU", "device": "a CPU", "cores": 2, "threads": 1, "python": "3", "torch": "2", "repl_fx": "1"}
    return Benchmark(machine, {"rounds": 3}, training, inference, ("a note",))


def test_throughput_is_by_the_median_and_ratios_are_paired() -> None:
    result = measured()
    original, ours, broken = result.training
    assert original.samples == pytest.approx([0.3, 0.2, 0.4])
    assert original.throughput == pytest.approx(4 / 0.3)
    assert result.time_ratio(ours) == pytest.approx(0.5) and result.time_ratio(original) == 1
    assert broken.throughput is None and result.time_ratio(broken) is None
    # Only rounds and rows that took turns are compared.
    assert result.time_ratio(result.inference[1]) == pytest.approx(0.5)
    assert result.time_ratio(result.inference[2]) == 1
    assert InferenceRow("original", None, seconds=[1.0]).throughput is None


@pytest.mark.parametrize(("peak", "memory", "size"), [(None, "kept", 4096), (500, "peak", 1000)])
def test_memory_is_the_peak_where_there_is_one(peak: int | None, memory: str, size: int) -> None:
    result = measured(peak).to_json()
    assert (result["memory"], result["training"][0][f"{memory}_bytes"]) == (memory, size)
    assert f"{memory}_bytes" not in result["training"][2]


def test_the_document_has_all_of_it() -> None:
    document = json.loads(json.dumps(measured().to_json(), allow_nan=False))
    assert (document["kind"], document["schema"], document["memory"]) == ("repl-fx bench", 1, "kept")
    first, _, broken = document["training"]
    assert len(first["samples"]) == 3 and set(first["samples"][0]) == set(PARTS)
    assert first["seconds"]["median"] == pytest.approx(0.3) and first["seconds"]["lower"] == pytest.approx(0.25)
    assert (first["parameters"], first["kept_bytes"], first["of_original"]) == (100, 4096, 1)
    assert broken["not_measured"] == "a reason" and broken["seconds"] is None and broken["samples"] == []
    assert document["inference"][1]["runtime"] == "eager" and document["inference"][1]["samples"] == [0.01]


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

"""Figures of what was measured."""

from __future__ import annotations

import json

import pytest

from repl_fx.benchmarking.results import Benchmark, InferenceRow, TrainingRow
from repl_fx.benchmarking.training import PARTS, Sizes


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

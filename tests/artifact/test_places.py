"""Names of what lies in an artifact's directory: part of its format, which programs of others may rely on."""

from __future__ import annotations

from repl_fx.artifact import places


def test_names_stay_as_they_are() -> None:
    assert (places.PROOF, places.BENCH, places.CHART) == ("verify.json", "bench.json", "bench.svg")
    assert (places.COMPRESSION, places.SCORES, places.RESULT) == ("compression", "scores.json", "result.json")
    assert (places.STATE, places.LOGS, places.OTHERS) == ("train_state", "logs", "others")
    assert (places.COMPARISON, places.FIGURES) == ("comparison.json", "healing.json")

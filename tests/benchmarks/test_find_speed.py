"""benchmarks/find_speed.py: its graphs are what they are said to be, and its figures what they are named."""

from __future__ import annotations

from typing import Any

import pytest

import repl_fx
from benchmarks import find_speed
from benchmarks.find_speed import SHAPES, curves, describe, document, exponent, line, medians, synthetic, totals


def _run(search: float, trace: float = 1.0, fast: float | None = None) -> dict[str, Any]:
    return {"trace": trace, "search": search, "found": "3", "nodes": 10, "fast": fast}


MEASURED: list[dict[str, Any]] = [
    {
        "model": "both",
        "tools": {"repl-fx": [_run(0.1), _run(0.3), _run(0.2)], "NNCF": [_run(0.9, 0.5, fast=0.4)]},
    },
    {"model": "one", "tools": {"repl-fx": [_run(7.0)], "NNCF": [{"error": "IndexError: no such node"}]}},
]
GROWTH = [{"shape": "two halves", "nodes": n, "seconds": [n / 1e5, n / 1e4, 9.0], "found": "2"} for n in (100, 1000)]


@pytest.mark.parametrize("shape", SHAPES)
def test_synthetic_graphs_have_about_the_nodes_asked_for_and_repeat(shape: str) -> None:
    gm = synthetic(shape, 1000)
    gm.graph.lint()
    assert 800 < len(gm.graph.nodes) < 1050
    repeats = repl_fx.find_repeats(gm)
    covered = {node for repeat in repeats for block in repeat.blocks for node in block.nodes}
    assert len(covered) > 0.9 * len(gm.graph.nodes)


def test_what_was_found_is_the_copies_of_each_repeat() -> None:
    assert describe(repl_fx.find_repeats(synthetic("short blocks", 30))) == "6"
    assert describe(()) == "none"
    assert describe(repl_fx.find_repeats(synthetic("many stages", 600))) == "108 in 6 repeats"


def test_the_exponent_tells_proportional_from_quadratic() -> None:
    assert exponent([(10, 0.5), (100, 5.0), (1000, 50.0)]) == pytest.approx(1)
    assert exponent([(10, 1.0), (100, 100.0)]) == pytest.approx(2)


def test_totals_leave_out_models_on_which_a_tool_failed() -> None:
    assert medians(MEASURED[0], "repl-fx") == pytest.approx({"search": 0.2, "both": 1.2, "fast": 0.2})
    assert medians(MEASURED[1], "NNCF") is None
    number, sums = totals(MEASURED, ("repl-fx", "NNCF"))
    assert number == 1
    assert sums["repl-fx"]["search"] == pytest.approx(0.2)
    assert sums["NNCF"] == pytest.approx({"search": 0.9, "both": 1.4, "fast": 0.4})


def test_the_document_has_failures_and_what_was_missing() -> None:
    about = find_speed.environment(("repl-fx",), ("Torch-Pruning",), 3, "cpu")
    about["tools"] = {"repl-fx": "1", "NNCF": "2"}
    text = document({"environment": about, "models": MEASURED, "growth": GROWTH}, picture=False)
    assert "Torch-Pruning was not installed" in text
    assert "- NNCF on one: IndexError: no such node" in text
    assert "| both | 10 | 3 | 200 (100–300) |" in text and "| failed | – | – |" in text
    assert "- two halves, 1.00:" in text and "find_speed.svg" not in text
    assert "repl-fx on 2, NNCF on 0" in text
    assert "NNCF: IndexError" in line(MEASURED[1])
    assert curves(GROWTH)["two halves"] == [(100, 0.01), (1000, 0.1)]


def test_a_tool_that_fails_is_named_and_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(find_speed._Worker):
        def _start(self) -> None:
            pass

        def run(self, model: str) -> dict[str, Any]:
            return {"error": "RuntimeError: broken"} if self.tool == "NNCF" else _run(1.0)

        def close(self) -> None:
            pass

    monkeypatch.setattr(find_speed, "_Worker", Broken)
    (measured,) = find_speed.compare(["gpt2"], ["repl-fx", "NNCF"], 3, "cpu", 1.0)
    assert len(measured["tools"]["repl-fx"]) == 3
    assert measured["tools"]["NNCF"] == [{"error": "RuntimeError: broken"}]

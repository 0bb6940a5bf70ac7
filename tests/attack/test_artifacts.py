"""Damaged artifacts are refused; `python -m benchmarks.attack --artifacts N` damages more of them."""

from __future__ import annotations

import pytest
import torch

import repl_fx
from tests.attack.artifacts import run_damages


@pytest.mark.slow
def test_damaged_artifacts_are_refused_or_as_they_were() -> None:
    counts = run_damages(0, 70)
    assert counts.wrong == [], str(counts)
    assert counts.refused > 46 and counts.same > 0 and len(counts.kinds) == 13


def test_a_load_that_looks_away_is_judged_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    own = repl_fx.load

    def careless(directory: str, model: torch.nn.Module | None = None) -> torch.nn.Module:
        try:
            return own(directory, model)
        except repl_fx.ArtifactError:
            return torch.nn.Embedding(7, 7)

    monkeypatch.setattr(repl_fx, "load", careless)
    counts = run_damages(0, 20)
    assert len(counts.wrong) > 10 and "another output" in str(counts)

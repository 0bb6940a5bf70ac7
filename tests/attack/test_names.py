"""Networks with odd names are right, or refused in a line; `judge_names` judges more of them."""

from __future__ import annotations

import pytest

from tests.attack import judge, names
from tests.attack.names import NAMES, draw, judge_names


@pytest.mark.slow
@pytest.mark.parametrize("name", ['a"b', "a\nb", "class", "\ufb01"])
def test_a_network_with_odd_names_is_right(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "SURROGATES", ("bottleneck",))
    monkeypatch.setattr(names, "draw", lambda seed: ([name, f"{name}1", f"{name}2", f"{name}3", "x", "y"], False))
    verdict = judge_names(0)
    assert verdict.outcome == "right", str(verdict)
    assert {"capture", "bottleneck", "bottleneck/fold", "bottleneck/load", "bottleneck/export"} <= {
        finding.stage for finding in verdict.findings if finding.outcome == "right"
    }


def test_each_name_is_drawn_and_no_name_twice_for_one_network() -> None:
    drawn = [draw(seed)[0] for seed in range(len(NAMES))]
    assert all(len(set(found)) == 6 for found in drawn)
    assert {name for found in drawn for name in found[:2]} >= set(NAMES)

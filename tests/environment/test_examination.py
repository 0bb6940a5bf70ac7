"""All around repl-fx together: what is broken, and what to do."""

from __future__ import annotations

import json
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from repl_fx.environment import examination
from repl_fx.environment.examination import Examination, examine
from repl_fx.environment.probes import Probe
from tests.environment.installed import install


def examined(place: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> Examination:
    """What is found where repl-fx declares these requirements."""
    monkeypatch.syspath_prepend(place)
    install(place / "own", "repl-fx", "0.1", code=None, lines=lines)
    own = PathDistribution(place / "own" / "repl_fx-0.1.dist-info")
    monkeypatch.setattr(examination, "own_distribution", lambda: own)
    return examine()


def test_what_is_broken_of_the_core_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "repl-fx-test-old", "1.0")
    install(tmp_path, "repl-fx-test-broken", "1.0", code="import nothing_such")
    core = ("msgspec", "repl-fx-test-old>=2", "repl-fx-test-broken", "repl-fx-test-absent>=3")
    found = examined(tmp_path, monkeypatch, *(f"Requires-Dist: {one}" for one in core))
    assert found.problems == [
        "repl-fx-test-old is 1.0; pip install 'repl-fx-test-old>=2'",
        "repl-fx-test-broken cannot be imported (ModuleNotFoundError: No module named 'nothing_such'); "
        "pip install --force-reinstall 'repl-fx-test-broken'",
        "repl-fx-test-absent is missing; pip install 'repl-fx-test-absent>=3'",
    ]
    document = json.loads(json.dumps(found.to_json()))
    assert document["fine"] is False and document["problems"] == found.problems
    assert [p["fits"] and p["problem"] is None for p in document["packages"]] == [True, False, False, False]


def test_what_is_missing_of_an_extra_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "repl-fx-test-broken", "1.0", code="1 / 0")
    install(tmp_path, "repl-fx-test-tool", "1.0", code="1 / 0")
    lines = (
        "Provides-Extra: zoo",
        "Provides-Extra: dev",
        "Requires-Dist: msgspec",
        "Requires-Dist: repl-fx-test-broken; extra == 'zoo'",
        "Requires-Dist: repl-fx-test-absent; extra == 'zoo'",
        "Requires-Dist: repl-fx-test-tool; extra == 'dev'",
    )
    found = examined(tmp_path, monkeypatch, *lines)
    assert found.problems == []
    # The tools of those who work on repl-fx are not imported.
    assert {p.name: p.problem for p in found.packages} == {
        "msgspec": None,
        "repl-fx-test-broken": "ZeroDivisionError: division by zero",
        "repl-fx-test-tool": None,
    }
    zoo, dev = found.to_json()["extras"]
    assert zoo == {
        "name": "zoo",
        "complete": False,
        "missing": ["repl-fx-test-absent"],
        "command": "pip install 'repl-fx[zoo]'",
    }
    assert dev["complete"]


def test_variables_and_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    install(tmp_path, "torch", "2.15.1", code=None)
    install(tmp_path, "repl-fx-test-older", "1.0", lines=("Requires-Dist: torch==2.13.0",))
    probes = {
        "torch": Probe(facts={"warnings": ["CUDA initialization: an old driver"], "threads": 3, "devices": []}),
        "timm": Probe("RuntimeError: no operator", broken="repl_fx_test_vision"),
        "repl_fx_test_vision": Probe("RuntimeError: no operator", broken="repl_fx_test_vision"),
        "repl_fx_test_older": Probe(),
    }
    monkeypatch.setattr(examination, "probe", lambda modules, progress: probes)
    monkeypatch.setattr(examination, "own_distribution", lambda: None)
    monkeypatch.setenv("REPL_FX_CHECK", "yes")
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    monkeypatch.setenv("CXX", "/no/compiler")
    found = examine()
    assert {
        "REPL_FX_CHECK": "yes",
        "TORCHDYNAMO_DISABLE": "1",
        "CXX": "/no/compiler",
    }.items() <= found.variables.items()
    unknown, check, vision, older, cuda = found.notes
    assert unknown.startswith("repl-fx is not installed") and check == "REPL_FX_CHECK is 'yes'; set it to 1 or 0"
    assert vision == (
        "repl_fx_test_vision cannot be imported (RuntimeError: no operator); "
        "pip install --force-reinstall repl_fx_test_vision"
    )
    assert older == (
        "repl_fx_test_older asks for torch==2.13.0, and another torch is installed; "
        "pip install 'torch==2.15.1' repl_fx_test_older"
    )
    assert cuda == "torch: CUDA initialization: an old driver"
    assert found.compile_problem == "CXX is /no/compiler, which is no program"
    assert found.machine["threads"] == 3 and found.problems == []

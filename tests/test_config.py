"""Settings of the environment."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from repl_fx import config
from repl_fx.errors import BadInput


@pytest.mark.parametrize(("value", "wanted"), [(None, False), ("0", False), ("1", True)])
def test_the_check_of_passes_is_asked_for(monkeypatch: pytest.MonkeyPatch, value: str | None, wanted: bool) -> None:
    monkeypatch.delenv("REPL_FX_CHECK", raising=False)
    if value is not None:
        monkeypatch.setenv("REPL_FX_CHECK", value)
    assert config.check_passes() is wanted


def test_another_value_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPL_FX_CHECK", "yes")
    with pytest.raises(BadInput, match="REPL_FX_CHECK is 'yes'; set it to 1 or 0"):
        config.check_passes()


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, True),
        ({"REPL_FX_PROGRESS": "1", "RANK": "0", "LOCAL_RANK": ""}, True),
        ({"REPL_FX_PROGRESS": "0"}, False),
        *(({name: "2"}, False) for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")),
    ],
)
def test_progress_is_of_the_first_process(monkeypatch: pytest.MonkeyPatch, given: dict[str, str], wanted: bool) -> None:
    for name in ("REPL_FX_PROGRESS", "RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert config.show_progress() is wanted
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 1)
    assert not config.show_progress()
    monkeypatch.setenv("REPL_FX_PROGRESS", "yes")
    with pytest.raises(BadInput, match="REPL_FX_PROGRESS is 'yes'; set it to 1 or 0"):
        config.show_progress()


def test_what_a_package_offers_is_imported_or_named(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint("half", "fractions:Fraction", "g"), EntryPoint("gone", "fractions:Gone", "g")]
    monkeypatch.setattr(config, "entry_points", lambda group: [point for point in points if point.group == group])
    assert list(config.offered("g")) == ["half", "gone"] and config.offered("other") == {}
    assert config.load_offered("g", "half").__name__ == "Fraction"
    with pytest.raises(BadInput, match=r"package offers 'gone' \(g: fractions:Gone\), which fails: .*Gone"):
        config.load_offered("g", "gone")

"""The search for reference cycles rests, and runs again."""

from __future__ import annotations

import gc

import pytest

from repl_fx.running.collection import collection_paused, imports_passed_over


def test_the_collector_rests_and_runs_again_also_behind_an_error() -> None:
    assert gc.isenabled()
    with collection_paused():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(KeyError), collection_paused():
        raise KeyError
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with collection_paused(), collection_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_what_is_imported_is_passed_over_until_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    for frozen_before, expected in ((0, ["freeze", "unfreeze"]), (7, [])):
        told: list[str] = []
        monkeypatch.setattr(gc, "get_freeze_count", lambda frozen=frozen_before: frozen)
        monkeypatch.setattr(gc, "freeze", lambda told=told: told.append("freeze"))
        monkeypatch.setattr(gc, "unfreeze", lambda told=told: told.append("unfreeze"))
        with pytest.raises(KeyError), imports_passed_over() as imported:
            assert not gc.isenabled() and told == []
            for _ in range(2):
                imported()
                assert gc.isenabled() and told == expected[:1]
            raise KeyError
        assert gc.isenabled() and told == expected

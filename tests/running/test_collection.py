"""The search for reference cycles rests, and runs again."""

from __future__ import annotations

import gc

import pytest

from repl_fx.running.collection import collection_paused


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

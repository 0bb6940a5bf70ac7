"""The state of a compression on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from repl_fx.errors import BadInput, OutputError
from repl_fx.planning.scoring.scores import BlockScore, Scores
from repl_fx.training.compression.stages import RESULT, SETTINGS, CompressionState
from repl_fx.training.data.content import content_of
from repl_fx.training.train_config import settings_to_compress
from tests.training.runs import pictures

SCORES = Scores((BlockScore("blocks.1", "blocks", influence=0.25),), (), 8, ("influence",))


def test_what_is_known_is_read_again(tmp_path: Path) -> None:
    state, config = CompressionState(tmp_path / "out"), settings_to_compress().changed(budget=["flops=0.7"], samples=9)
    assert not state.begun and state.scores() is None and state.figures() == {}
    state.begin("net.py", config)
    state.write_scores(SCORES)
    state.add(figures={"original": {"loss": 1.5}})
    state.add(figures={"cut": {"loss": 2.5}}, fits=[])
    again = CompressionState(tmp_path / "out")
    assert again.begun and again.scores() == SCORES
    assert (again.settings().spec, again.settings().settings) == ("net.py", config)
    assert again.figures() == {"original": {"loss": 1.5}, "cut": {"loss": 2.5}}
    # Of a run before nothing stays.
    again.begin("other.py", config)
    assert again.scores() is None and again.result() == {} and again.settings().spec == "other.py"
    again.discard()
    assert not (tmp_path / "out").exists()


def test_a_compression_goes_on_with_its_own_data_alone(tmp_path: Path) -> None:
    state, data = CompressionState(tmp_path), pictures()
    state.begin("net.py", settings_to_compress(), content_of(data))
    state.require_same_data(pictures())
    with pytest.raises(BadInput, match=r"bright has other samples, .* than when the compression in .* began"):
        state.require_same_data(replace(data, test=data.train))


def test_files_of_others_stay(tmp_path: Path) -> None:
    state = CompressionState(tmp_path)
    state.begin("net.py", settings_to_compress())
    (tmp_path / "mine.txt").write_text("x")
    state.discard()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_damaged_files_and_full_disks_are_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = CompressionState(tmp_path)
    with pytest.raises(BadInput, match="has no compression to go on with"):
        state.settings()
    state.begin("net.py", settings_to_compress())
    state.add(figures={})
    for name, read in ((SETTINGS, state.settings), (RESULT, state.result)):
        (state.place / name).write_text("{[")
        with pytest.raises(BadInput, match=rf"{name} cannot be read: .*; begin anew with --force"):
            read()
    state.begin("net.py", settings_to_compress())

    def full(*args: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutputError, match="cannot be written: No space left on device"):
        state.write_scores(SCORES)

"""Stopped before any of its writes, a process leaves the old artifact or the new one, and all files of others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import repl_fx
from repl_fx.artifact.manifest import read_manifest
from repl_fx.cli import app
from repl_fx.sources import load_source
from repl_fx.sources.source import hash_file
from tests.artifact.cuts import cut_before_each_write
from tests.artifact.edits import copy_artifact
from tests.attack.artifacts import IDS, MODEL

OTHERS = {"notes.txt": "mine", "checkpoints/last.ckpt": "mine too"}


def _run(*arguments: object) -> None:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("made")
    (place / "net.py").write_text(MODEL)
    _run("transform", place / "net.py", "-o", place / "artifact", "--surrogate", "blend", "--no-check")
    _run("export", place / "artifact")
    return place


@pytest.fixture
def place(_made: Path, tmp_path: Path) -> Path:
    """A model file, and an artifact that was exported, with files of others in it."""
    copy_artifact(_made, tmp_path / "place")
    for name, text in OTHERS.items():
        (tmp_path / "place" / "artifact" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "place" / "artifact" / name).write_text(text)
    return tmp_path / "place"


def _files(directory: Path) -> dict[str, str]:
    """The files of an artifact, each of which is whole."""
    files = read_manifest(directory).files
    assert all(hash_file(directory / file.at) == file.sha256 for file in files.values())
    return {name: file.sha256 for name, file in files.items()}


def _transform(place: Path) -> None:
    _run("transform", place / "net.py", "-o", place / "artifact", "--force", "--surrogate", "bottleneck", "--no-check")


def _export(place: Path) -> None:
    _run("export", place / "artifact", "--opset", "19")


def _save(place: Path) -> None:
    source = load_source(str(place / "net.py"))
    result = repl_fx.transform(source.model, source.args, surrogate="identity", check=False)
    repl_fx.save(result, place / "artifact", source=source, force=True)


@pytest.mark.parametrize("command", [_transform, _export, _save])
def test_old_or_new_at_every_write(place: Path, tmp_path: Path, command: Callable[[Path], None]) -> None:
    old = _files(place / "artifact")
    with cut_before_each_write(place / "artifact", tmp_path / "cuts"):
        command(place)
    new = _files(place / "artifact")
    cuts = sorted((tmp_path / "cuts").iterdir())
    found = [_files(cut) for cut in cuts]
    assert len(cuts) > 20 and old != new
    committed = [files == new for files in found]
    assert committed == sorted(committed) and not committed[0] and committed[-1]
    assert all(files == old for files in found[: committed.index(True)])
    for cut in (*cuts, place / "artifact"):
        assert {name: (cut / name).read_text() for name in OTHERS} == OTHERS
    # What is loaded just before the moment, just behind it, and at the end.
    at = committed.index(True)
    torch.manual_seed(0)
    outputs = [repl_fx.load(cut)(IDS) for cut in (cuts[0], cuts[at - 1], cuts[at], cuts[-1], place / "artifact")]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[2], outputs[4]) and torch.equal(outputs[3], outputs[4])
    names = {path.name for path in (place / "artifact").iterdir()}
    assert names == {*new, "manifest.json", "notes.txt", "checkpoints"}

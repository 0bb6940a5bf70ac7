"""Stopped before any of its writes, a process leaves the old artifact or the new one, and all files of others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from torch import Tensor
from typer.testing import CliRunner

import repl_fx
from repl_fx.artifact.manifest import read_manifest
from repl_fx.cli import app
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


@pytest.fixture(scope="module")
def output_before(_made: Path) -> Tensor:
    """The output of the artifact before a command writes."""
    output: Tensor = repl_fx.load(_made / "artifact")(IDS)
    return output


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


# What `transform` writes is what `repl_fx.save` writes: the command calls it.
@pytest.mark.slow
@pytest.mark.parametrize("command", [_transform, _export])
def test_old_or_new_at_every_write(
    place: Path, tmp_path: Path, command: Callable[[Path], None], output_before: Tensor
) -> None:
    old, before = _files(place / "artifact"), read_manifest(place / "artifact")
    with cut_before_each_write(place / "artifact", tmp_path / "cuts"):
        command(place)
    new, after = _files(place / "artifact"), read_manifest(place / "artifact")
    cuts = sorted((tmp_path / "cuts").iterdir())
    found = [_files(cut) for cut in cuts]
    assert len(cuts) > 20 and old != new
    committed = [files == new for files in found]
    assert committed == sorted(committed) and not committed[0] and committed[-1]
    assert all(files == old for files in found[: committed.index(True)])
    for cut in (*cuts, place / "artifact"):
        assert {name: (cut / name).read_text() for name in OTHERS} == OTHERS
    # All that a load reads is what it was, or what it is in the end.
    at = committed.index(True)
    told = [replace(read_manifest(cut), files={}, gone=()) for cut in cuts]
    assert told == [replace(before, files={}, gone=())] * at + [replace(after, files={}, gone=())] * (len(cuts) - at)
    torch.manual_seed(0)
    outputs = [repl_fx.load(cut)(IDS) for cut in (cuts[at - 1], cuts[at], place / "artifact")]
    assert torch.equal(outputs[0], output_before) and torch.equal(outputs[1], outputs[2])
    names = {path.name for path in (place / "artifact").iterdir()}
    assert names == {*new, "manifest.json", "notes.txt", "checkpoints"}

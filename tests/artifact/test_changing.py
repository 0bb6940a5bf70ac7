"""How files come into an artifact: all of them at one moment, or none, and nothing of others is lost."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from repl_fx.artifact.changing import DirectoryChange, changing, require_free
from repl_fx.artifact.manifest import Manifest, read_manifest
from repl_fx.errors import OutputError
from repl_fx.sources.source import hash_file
from repl_fx.tracing.parts.inputs import Inputs
from tests.artifact.cuts import cut_before_each_write

OLD = {"plan.json": "old plan", "model.safetensors": "old weights", "model.onnx": "old onnx"}
NEW = {"plan.json": "new plan", "model.safetensors": "new weights", "graph.txt": "new graph"}


def manifest() -> Manifest:
    inputs = Inputs(args=(), kwargs={})
    return Manifest(versions={}, code="", model=None, parts=(), eager=(), inputs=inputs, aliases={}, parameters=0)


def write(directory: Path, files: dict[str, str], keep: tuple[str, ...] = ()) -> None:
    with changing(directory) as change:
        for name, text in files.items():
            (change.place / name).write_text(text)
        change.commit(manifest(), keep=keep)


def contents(directory: Path) -> dict[str, str]:
    """What the artifact is, by its manifest."""
    found = {}
    for name, file in read_manifest(directory).files.items():
        assert hash_file(directory / file.at) == file.sha256
        found[name] = (directory / file.at).read_text()
    return found


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_files_come_under_their_own_names(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b", OLD)
    assert contents(tmp_path / "a" / "b") == OLD
    assert names(tmp_path / "a" / "b") == {*OLD, "manifest.json"}
    write(tmp_path / "a" / "b", NEW)
    assert contents(tmp_path / "a" / "b") == NEW
    assert names(tmp_path / "a" / "b") == {*NEW, "manifest.json"}
    write(tmp_path / "a" / "b", {"model.onnx": "onnx"}, keep=("plan.json", "graph.txt"))
    assert names(tmp_path / "a" / "b") == {"plan.json", "graph.txt", "model.onnx", "manifest.json"}


def test_it_may_be_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "thesis.txt").write_text("precious")
    monkeypatch.chdir(tmp_path / "below")
    for directory in (Path(), Path(".."), tmp_path):
        write(directory, OLD)
        write(directory, NEW)
        assert contents(directory) == NEW
        assert Path.cwd() == tmp_path / "below"
    assert (tmp_path / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize("there", ["old", "empty", "absent"])
@pytest.mark.parametrize("links", [True, False])
def test_a_process_stopped_at_any_write_leaves_the_old_or_the_new(
    tmp_path: Path, there: str, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "artifact"
    if there != "absent":
        directory.mkdir()
        (directory / "notes.txt").write_text("mine")
        (directory / "checkpoints").mkdir()
        (directory / "checkpoints" / "last.ckpt").write_text("mine too")
    if there == "old":
        write(directory, OLD)
    if not links:

        def refuse(*_: object) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr("os.link", refuse)
    with cut_before_each_write(directory, tmp_path / "cuts"):
        write(directory, NEW)
    cuts = sorted((tmp_path / "cuts").iterdir())
    assert len(cuts) > 12
    committed = []
    for cut in cuts:
        exists = (cut / "manifest.json").exists()
        assert exists or there != "old"
        found = contents(cut) if exists else None
        assert found in ((OLD, NEW) if there == "old" else (None, NEW))
        committed.append(found == NEW)
        if there != "absent":
            assert (cut / "notes.txt").read_text() == "mine"
            assert (cut / "checkpoints" / "last.ckpt").read_text() == "mine too"
        if there == "absent" and not exists:
            require_free(cut, force=False)
        # The next run finds its way.
        write(cut, {"plan.json": "newest"})
        assert contents(cut) == {"plan.json": "newest"}
        rest = {"notes.txt", "checkpoints"} if there != "absent" else set()
        assert names(cut) == {"plan.json", "manifest.json", *rest}
    # There is one moment between the two, and it is neither the first write nor the last.
    assert committed == sorted(committed) and not committed[0] and committed[-1]


def test_an_error_before_the_commit_leaves_what_was_there(tmp_path: Path) -> None:
    write(tmp_path / "a", OLD)
    for directory in (tmp_path / "a", tmp_path / "none" / "b"):
        with (
            pytest.raises(OutputError, match=r"cannot write .*: No space left on device"),
            changing(directory) as change,
        ):
            (change.place / "plan.json").write_text("new")
            raise OSError(errno.ENOSPC, "No space left on device")
        with pytest.raises(KeyboardInterrupt), changing(directory) as change:
            (change.place / "plan.json").write_text("new")
            raise KeyboardInterrupt
    assert contents(tmp_path / "a") == OLD
    assert names(tmp_path) == {"a"}
    assert names(tmp_path / "a") == {*OLD, "manifest.json"}


def test_an_error_behind_the_commit_does_not_take_it_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a", OLD)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.link", full)
        patched.setattr("shutil.copyfile", full)
        write(tmp_path / "a", NEW)
    assert contents(tmp_path / "a") == NEW
    write(tmp_path / "a", {"graph.txt": "last"}, keep=tuple(NEW))
    assert contents(tmp_path / "a") == {**NEW, "graph.txt": "last"}
    assert names(tmp_path / "a") == {*NEW, "manifest.json"}


def _changed(path: Path) -> None:
    path.write_text("trained by hand")


def _linked(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "nowhere")


@pytest.mark.parametrize("what", [_changed, _linked])
def test_a_file_that_was_changed_is_not_replaced(tmp_path: Path, what: Callable[[Path], None]) -> None:
    write(tmp_path / "a", OLD)
    what(tmp_path / "a" / "model.safetensors")
    with pytest.raises(OutputError, match=r"model.safetensors is not as repl-fx wrote it; move it away"):
        require_free(tmp_path / "a", force=True)
    with pytest.raises(OutputError, match=r"model.safetensors is not as repl-fx wrote it"):
        write(tmp_path / "a", NEW)
    with changing(tmp_path / "a") as change, pytest.raises(OutputError, match=r"model.safetensors is not as"):
        change.require_own(["plan.json", "model.safetensors"])
    assert (tmp_path / "a" / "plan.json").read_text() == "old plan"
    # A file that has to go, and is another by now, stays.
    (tmp_path / "a" / "model.safetensors").unlink()
    what(tmp_path / "a" / "model.onnx")
    write(tmp_path / "a", NEW)
    assert contents(tmp_path / "a") == NEW
    assert "model.onnx" in names(tmp_path / "a")


def test_places_that_are_taken(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        require_free(tmp_path / "file", force=True)
    write(tmp_path / "a", OLD)
    with pytest.raises(OutputError, match="is not empty; choose another place"):
        require_free(tmp_path / "a", force=False)
    require_free(tmp_path / "a", force=True)
    (tmp_path / "home").mkdir()
    require_free(tmp_path / "home", force=False)
    require_free(tmp_path / "none", force=False)
    (tmp_path / "home" / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match=r"replaces artifacts only: .* has no manifest.json"):
        require_free(tmp_path / "home", force=True)
    # A manifest of another program makes no artifact.
    (tmp_path / "home" / "manifest.json").write_text('{"name": "an extension"}')
    with pytest.raises(OutputError, match=r"replaces artifacts only: .* is of another program"):
        require_free(tmp_path / "home", force=True)
    with pytest.raises(OutputError, match="cannot write"), changing(tmp_path / "file" / "below"):
        pass


def test_two_do_not_write_at_once(tmp_path: Path) -> None:
    write(tmp_path / "a", OLD)
    with changing(tmp_path / "a") as change:
        (change.place / "plan.json").write_text("new")
        with pytest.raises(OutputError, match="is being written by another process"), changing(tmp_path / "a"):
            pass
        # Its files are half the old and half the new ones.
        with pytest.raises(OutputError, match="is being written by another process"):
            require_free(tmp_path / "a", force=True)
        change.commit(manifest())
    assert contents(tmp_path / "a") == {"plan.json": "new"}


def test_a_place_is_free_when_it_is_written(tmp_path: Path) -> None:
    require_free(tmp_path / "a", force=False)
    write(tmp_path / "a", OLD)
    with pytest.raises(OutputError, match="is not empty"), changing(tmp_path / "a", force=False):
        pass
    assert contents(tmp_path / "a") == OLD


def test_what_looks_like_an_unfinished_change_and_is_none_stays(tmp_path: Path) -> None:
    write(tmp_path / "a", OLD)
    (tmp_path / "a" / ".repl-fx-notes").mkdir()
    (tmp_path / "a" / ".repl-fx-12345678").write_text("a file")
    write(tmp_path / "a", NEW)
    assert {".repl-fx-notes", ".repl-fx-12345678"} < names(tmp_path / "a")


def test_a_change_says_where(tmp_path: Path) -> None:
    with changing(tmp_path / "a") as change:
        assert isinstance(change, DirectoryChange) and change.directory == tmp_path / "a"
        assert change.place.parent == tmp_path / "a"
        (change.place / "graph.txt").write_text("x")
        change.commit(manifest())
    assert os.stat(tmp_path / "a" / "graph.txt").st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

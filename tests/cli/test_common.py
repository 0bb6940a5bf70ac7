"""Shared by the commands: SPEC|DIR, settings, and what goes to stdout and stderr."""

from __future__ import annotations

import gc
import io
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from repl_fx.cli.common import Terminal, require_free_file, running, write_whole
from repl_fx.errors import OutputError
from tests.cli.results import document, one_line

if TYPE_CHECKING:
    from .conftest import Run


@pytest.mark.slow
def test_a_model_that_moved_is_named(run: Run, artifact: Path, tmp_path: Path) -> None:
    moved = (artifact.parent / "model.py").rename(tmp_path / "net.py")
    for command in (("inspect", artifact), ("verify", artifact, artifact / "model.onnx"), ("export", artifact)):
        lost = run(*command)
        assert lost.exit_code == 2 and "which is gone; name where it is: --model" in lost.stderr
        assert run(*command, "--model", moved).exit_code == 0
    # What writes the manifest notes the new place.
    assert run("inspect", artifact).exit_code == 0
    for command in (("inspect", moved), ("verify", moved, artifact / "model.onnx")):
        needless = run(*command, "--model", moved)
        assert needless.exit_code == 2 and "is no directory; leave out --model" in needless.stderr


def test_json_stands_alone_whatever_the_model_prints(run: Run, model_file: Path) -> None:
    model_file.write_text(model_file.read_text() + "\nprint('hello')\nimport warnings\nwarnings.warn('loud')\n")
    result = run("inspect", model_file, "--json")
    document(result.stdout)
    assert "hello" in result.stderr and "loud" not in result.stderr


def test_stages_are_told_with_v_and_not_with_q(run: Run, model_file: Path) -> None:
    loud = run("inspect", model_file, "-v")
    assert [line.split(" … ")[0] for line in loud.stderr.splitlines() if " … " in line] == [
        "load",
        "capture",
        "find repeats",
        "measure costs",
    ]
    assert run("inspect", model_file, "-q").stderr == ""


def _no_artifact(artifact: Path) -> None:
    (artifact / "manifest.json").unlink()


def _foreign(artifact: Path) -> None:
    (artifact / "manifest.json").write_text('{"schema": 1, "kind": "photo album"}')


def _newer(artifact: Path) -> None:
    manifest = json.loads((artifact / "manifest.json").read_text())
    (artifact / "manifest.json").write_text(json.dumps({**manifest, "schema": 99}))


def _garbled(artifact: Path) -> None:
    (artifact / "manifest.json").write_bytes(b"\xff\xfe{")


def _bad_plan(artifact: Path) -> None:
    (artifact / "plan.json").write_text('{"schema": 1, "replacements": 3}')


def _cut_short(artifact: Path) -> None:
    weights = artifact / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def _no_weights(artifact: Path) -> None:
    (artifact / "model.safetensors").unlink()


def _model_gone(artifact: Path) -> None:
    (artifact.parent / "model.py").unlink()


def _model_changed(artifact: Path) -> None:
    file = artifact.parent / "model.py"
    file.write_text(file.read_text().replace("nn.Linear(8, 3)", "nn.Linear(8, 4)"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_no_artifact, "no artifact"),
        (_foreign, "another program"),
        (_newer, "schema 99"),
        (_garbled, "manifest.json"),
        (_bad_plan, "damaged"),
        (_cut_short, "damaged"),
        (_no_weights, "damaged"),
        (_model_gone, "model.py"),
        (_model_changed, "changed since"),
    ],
)
def test_an_artifact_that_cannot_be_used(run: Run, artifact: Path, damage: Any, message: str) -> None:
    damage(artifact)
    before = sorted(artifact.rglob("*"))
    for command in (("export", artifact), ("inspect", artifact), ("verify", artifact, artifact / "model.onnx")):
        assert message in one_line(run(*command))
    assert sorted(artifact.rglob("*")) == before


def test_a_file_is_refused_before_it_is_written_and_written_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    require_free_file(file, force=False, read="model.py")
    write_whole(file, "one")
    with pytest.raises(OutputError, match=r"a\.json exists; choose another place with -o"):
        require_free_file(file, force=False, read="model.py")
    require_free_file(file, force=True, read="model.py")
    write_whole(file, "two")
    assert file.read_text() == "two" and list(tmp_path.iterdir()) == [file]
    with pytest.raises(OutputError, match="is a directory; give the name of a file, not of its directory"):
        require_free_file(tmp_path, force=True, read="model.py")
    with pytest.raises(OutputError, match="there is no directory"):
        require_free_file(tmp_path / "none" / "a.json", force=False, read="model.py")
    if Path("/proc/self").is_dir():
        with pytest.raises(OutputError, match=r"/proc/a\.json cannot be written: "):
            require_free_file(Path("/proc/a.json"), force=False, read="model.py")
    file.unlink()
    file.mkdir()
    with pytest.raises(OutputError, match="cannot be written: "):
        write_whole(file, "three")
    assert list(tmp_path.iterdir()) == [file]


def test_what_is_read_is_not_replaced(run: Run, artifact: Path, model_file: Path) -> None:
    for command, read, file in (
        ("report", model_file, model_file),
        ("bench", f"{model_file}:model", model_file),
        ("export", artifact, artifact / "model.safetensors"),
        ("export", artifact, artifact / "manifest.json"),
    ):
        before = file.read_bytes()
        said = one_line(run(command, read, "-o", file, "--force"))
        assert f"{file} is a file of {read}, which is read" in said and file.read_bytes() == before


def test_one_document_or_lines_and_never_both() -> None:
    for as_json, expected in ((True, '{\n  "a": 1\n}\n'), (False, "[a]: line\n")):
        stdout = io.StringIO()
        terminal = Terminal(stdout, as_json, verbose=False, quiet=True, imported=gc.enable)
        terminal.show("[a]: line")
        terminal.document({"a": 1})
        assert stdout.getvalue() == expected


def test_cycles_are_searched_for_from_the_first_stage_on() -> None:
    for stages in ((), ("load", "capture")):
        with running(False, verbose=False, quiet=True) as terminal:
            assert not gc.isenabled()
            for name in stages:
                terminal.stage(name)
                assert gc.isenabled()
        assert gc.isenabled()


def test_warnings_are_shown_where_they_are_asked_for() -> None:
    with running(False, verbose=False, quiet=True):
        warnings.warn("of a library", stacklevel=1)
    with pytest.warns(UserWarning, match="of a library"), running(False, verbose=True, quiet=True):
        warnings.warn("of a library", stacklevel=1)


def test_a_working_directory_that_was_removed_is_refused(
    run: Run, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    refused = run("inspect", model_file)
    monkeypatch.chdir(tmp_path)
    assert "the working directory was removed; go to one that is there" in one_line(refused)

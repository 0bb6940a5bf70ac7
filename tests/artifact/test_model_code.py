"""The source model of an artifact: where its file may lie, and what code is run."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import repl_fx
from repl_fx.artifact.inputs import Inputs
from repl_fx.artifact.manifest import Manifest, Model, Options
from repl_fx.artifact.model_code import build_source
from repl_fx.sources.source import hash_file
from tests.artifact.edits import edit_manifest, set_value
from tests.artifact.tied_net import MODEL


def test_a_model_file_that_moved_is_taken_when_it_is_named(artifact: Path, model_file: Path, tmp_path: Path) -> None:
    ids = torch.arange(12).reshape(2, 6) % 11
    wanted = repl_fx.load(artifact)(ids)
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.move(artifact, tmp_path / "elsewhere" / "art")
    # A comment makes another file, and the same model.
    (tmp_path / "elsewhere" / "net.py").write_text(f"# Moved.\n{MODEL}")
    model_file.unlink()
    with pytest.raises(repl_fx.ArtifactError, match=r"was made from .*net\.py, which is gone"):
        repl_fx.load(moved)
    assert torch.equal(repl_fx.load(moved, str(tmp_path / "elsewhere" / "net.py"))(ids), wanted)


def test_no_code_that_comes_with_an_artifact_is_run(artifact: Path, model_file: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w')\n{MODEL}"
    (artifact / "net.py").write_text(code)
    digest = hashlib.sha256(code.encode()).hexdigest()
    inside = str(artifact / "net.py")
    before = (artifact / "manifest.json").read_text()
    for spec, files, message in (
        (f"{inside}:model", {inside: digest}, "which came with it"),
        ("net.py:model", {"net.py": digest}, "is no absolute path"),
        (f"{inside}:model", {}, "no hash of that file"),
        (f"{inside}:model", {str(model_file): hashlib.sha256(MODEL.encode()).hexdigest()}, "no hash of that file"),
        (f"{model_file}:model", {str(model_file): digest}, "changed since"),
    ):
        edit_manifest(artifact, set_value("model/spec", spec))
        edit_manifest(artifact, set_value("model/files", files))
        with pytest.raises(repl_fx.ArtifactError, match=message):
            repl_fx.load(artifact)
        (artifact / "manifest.json").write_text(before)
    assert not ran.exists()


def _manifest(model: Model | None) -> Manifest:
    inputs = Inputs(args=(), kwargs={})
    return Manifest(versions={}, code="", model=model, parts=(), eager=(), inputs=inputs, aliases={}, parameters=0)


def test_a_model_that_is_given_is_taken_and_one_that_is_not_has_to_be_known(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    assert build_source(tmp_path, _manifest(None), model, False) is model
    with pytest.raises(repl_fx.ArtifactError, match="was saved from Python without a model spec; pass the model"):
        build_source(tmp_path, _manifest(None), None, False)


def test_a_file_like_the_one_that_is_gone_is_named_and_not_run(tmp_path: Path) -> None:
    near, gone = tmp_path / "net.py", tmp_path / "gone" / "net.py"
    near.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    known = Model(f"{gone}:model", Options(None, 0, {}), "Net", {str(gone): hash_file(near)})
    with pytest.raises(
        repl_fx.ArtifactError, match=rf"is gone; a file like it is there: take it with --model {near}:m"
    ):
        build_source(tmp_path / "artifact", _manifest(known), None, False)
    assert not (tmp_path / "ran").exists()

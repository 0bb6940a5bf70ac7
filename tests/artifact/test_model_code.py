"""The source model of an artifact: where its file may lie, and what code is run."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
import torch

import repl_fx
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

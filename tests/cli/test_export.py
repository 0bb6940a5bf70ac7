"""`repl-fx export`: the file and its proof, both or neither."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest

import repl_fx
from repl_fx.reporting.model_graph.reading import read_verifications
from tests.cli.results import document, one_line

if TYPE_CHECKING:
    from .conftest import Run


@pytest.mark.slow
def test_export_writes_the_file_and_the_proof(run: Run, artifact: Path) -> None:
    (artifact / "model.onnx").unlink()
    (artifact / "verify.json").unlink()
    result = run("export", artifact)
    assert result.exit_code == 0, result.stderr
    assert "equivalent: 1 output at batch 1, 2, 5" in result.stdout
    assert json.loads((artifact / "verify.json").read_text())["equivalent"] is True
    onnx.checker.check_model(str(artifact / "model.onnx"))


@pytest.mark.slow
def test_errors_by_layer_are_part_of_the_proof(run: Run, artifact: Path) -> None:
    assert "leave one out" in one_line(run("export", artifact, "--per-layer", "--no-verify"))
    assert run("export", artifact, "--per-layer").exit_code == 0
    (verified,) = read_verifications(artifact / "verify.json")
    assert len(verified.layers) > 3 and verified.equivalent


@pytest.mark.slow
def test_export_without_verification_leaves_no_old_proof(run: Run, artifact: Path, tmp_path: Path) -> None:
    file = tmp_path / "other.onnx"
    result = run("export", artifact, "-o", file, "--opset", "18", "--no-verify", "--json")
    assert result.exit_code == 0, result.stderr
    found = document(result.stdout)
    assert found["verification"] is None and found["bytes"] == file.stat().st_size
    assert not (artifact / "verify.json").exists()
    assert {opset.domain: opset.version for opset in onnx.load(str(file)).opset_import}[""] == 18
    taken = run("export", artifact, "-o", file)
    assert taken.exit_code == 2 and "--force" in taken.stderr
    assert run("export", artifact, "-o", file, "--no-verify", "--force").exit_code == 0


def test_an_artifact_that_cannot_be_written_is_exported_elsewhere(
    run: Run, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact.chmod(0o555)
    # Root may write everywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: bool(Path(path).stat().st_mode & 0o200) or not mode & os.W_OK)
    before = {file.name: file.read_bytes() for file in artifact.iterdir()}
    result = run("export", artifact, "-o", tmp_path / "other.onnx")
    artifact.chmod(0o755)
    assert result.exit_code == 0, result.stderr
    assert f"{artifact} cannot be written, and keeps no verify.json" in result.stdout
    assert (tmp_path / "other.onnx").exists() and "equivalent: 1 output" in result.stdout
    assert before == {file.name: file.read_bytes() for file in artifact.iterdir()}


@pytest.mark.slow
def test_an_export_that_fails_leaves_no_file(run: Run, artifact: Path, tmp_path: Path) -> None:
    (artifact / "model.onnx").unlink()
    one_line(run("export", artifact, "--opset", "1"))
    assert "none" in one_line(run("export", artifact, "-o", tmp_path / "none" / "model.onnx"))
    assert not (artifact / "model.onnx").exists()


@pytest.mark.slow
def test_a_decoder_is_written_with_its_cache(run: Run, artifact: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    sizes = {"n_layer": 3, "n_head": 2, "n_embd": 16, "vocab_size": 64, "n_positions": 32}
    (tmp_path / "gpt").mkdir()
    (tmp_path / "gpt" / "config.json").write_text(json.dumps({"model_type": "gpt2", **sizes}))
    written = run("transform", f"hf:{tmp_path / 'gpt'}", "-o", tmp_path / "out", "--in-place", "--no-check")
    assert written.exit_code == 0, written.stderr
    result = run("export", tmp_path / "out", "--with-cache", "-o", tmp_path / "step.onnx")
    assert result.exit_code == 0, result.stderr
    assert "equivalent: 7 outputs at batch 1, 2, 5" in result.stdout
    graph = onnx.load(tmp_path / "step.onnx").graph
    assert {value.name for value in graph.input} > {"input_ids", "past_key_values_0_key", "past_key_values_2_value"}
    assert "takes no cache" in one_line(run("export", artifact, "--with-cache"))
    same = run("verify", tmp_path / "out", tmp_path / "step.onnx", "--with-cache")
    assert same.exit_code == 0 and "step.onnx is the file that export verified" in same.stdout, same.stderr
    assert "give DIR, and leave out --part" in one_line(
        run("verify", tmp_path / "out", tmp_path / "step.onnx", "--with-cache", "--part", "layers")
    )


def test_a_refused_export_leaves_all_as_it_was(run: Run, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {file.name: file.read_bytes() for file in artifact.iterdir()}
    assert {"model.onnx", "verify.json"} < before.keys()

    def refuse(*_: object, **__: object) -> None:
        raise repl_fx.ExportError("an operator has no translation")

    monkeypatch.setattr("repl_fx.artifact.exporting.export_program", refuse)
    result = run("export", artifact)
    assert result.exit_code == 2 and "no translation" in result.stderr
    assert {file.name: file.read_bytes() for file in artifact.iterdir()} == before

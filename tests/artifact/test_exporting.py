"""The ONNX files of an artifact and their proof."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import repl_fx
from repl_fx.artifact import PROOF, load_artifact
from repl_fx.artifact.exporting import export_artifact
from repl_fx.artifact.manifest import read_manifest
from repl_fx.errors import BadInput, ExportError
from repl_fx.running.example_inputs import ExampleInputs
from tests.nets import TokenNet

TOKENS = torch.randn(2, 6, 16)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return repl_fx.save(
        repl_fx.transform(TokenNet(depth=3), (TOKENS,), surrogate="linear", check=False), tmp_path / "a"
    )


def test_the_file_and_its_proof_are_files_of_the_artifact(place: Path) -> None:
    stages: list[str] = []
    found = export_artifact(load_artifact(place, TokenNet(depth=3)), progress=stages.append)
    assert found[""].verification and found[""].file == place / "model.onnx"
    assert found[""].bytes == (place / "model.onnx").stat().st_size
    written = json.loads((place / PROOF).read_text())
    assert written == json.loads(json.dumps(found[""].to_json()["verification"])) and written["equivalent"]
    assert {"model.onnx", PROOF} < read_manifest(place).files.keys()
    assert stages == ["export", "verify", "save"]


def test_a_file_elsewhere_without_a_proof(place: Path, tmp_path: Path) -> None:
    found = export_artifact(load_artifact(place, TokenNet(depth=3)), tmp_path / "out.onnx", verify=False)
    assert found[""].to_json() == {"onnx": str(tmp_path / "out.onnx"), "bytes": found[""].bytes, "verification": None}
    assert PROOF not in read_manifest(place).files and not (place / "model.onnx").exists()


def test_what_cannot_be_written_leaves_the_artifact(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact, before = load_artifact(place, TokenNet(depth=3)), read_manifest(place)

    def refuse(*_: object, **__: object) -> nn.Module:
        raise ExportError("an operator has no translation")

    monkeypatch.setattr("repl_fx.artifact.exporting.export_onnx", refuse)
    with pytest.raises(ExportError):
        export_artifact(artifact)
    assert read_manifest(place) == before
    bare = dataclasses.replace(artifact, result=dataclasses.replace(artifact.result, inputs=ExampleInputs()))
    with pytest.raises(BadInput, match="has no input_ids among its example inputs"):
        export_artifact(bare, with_cache=True)

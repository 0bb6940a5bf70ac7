"""The ONNX files of an artifact and their proof."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import repl_fx
from repl_fx.artifact import PROOF, adding, load_artifact
from repl_fx.artifact.exporting import digest_of, export_artifact
from repl_fx.artifact.manifest import read_manifest
from repl_fx.display.progress import telling
from repl_fx.errors import BadInput, ExportError, OutputError
from repl_fx.running.example_inputs import ExampleInputs
from tests.nets import TokenNet

TOKENS = torch.randn(2, 6, 16)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return repl_fx.save(
        repl_fx.transform(TokenNet(depth=3), (TOKENS,), surrogate="linear", check=False), tmp_path / "a"
    )


@pytest.mark.slow
def test_the_file_and_its_proof_are_files_of_the_artifact(place: Path) -> None:
    stages: list[str] = []
    with telling(None, stages.append):
        found = export_artifact(load_artifact(place, TokenNet(depth=3)))
    assert found[""].verification and found[""].file == place / "model.onnx"
    assert found[""].bytes == (place / "model.onnx").stat().st_size
    written = json.loads((place / PROOF).read_text())
    assert written == json.loads(json.dumps(found[""].to_json()["verification"])) and written["equivalent"]
    assert written["weights"]["equal"] >= 20 and written["outputs_equal"] and written["weights_equal"]
    manifest = read_manifest(place)
    assert {"model.onnx", PROOF} < manifest.files.keys()
    assert manifest.verified == {"": digest_of(place / "model.onnx")}
    # Weights that change are not those of the file.
    loaded = repl_fx.load(place, TokenNet(depth=3))
    assert read_manifest(repl_fx.save(loaded, place.parent / "b")).verified == {}
    assert stages == ["export", "verify", "save"]


def test_files_are_added_to_the_artifact_as_it_is_now(place: Path) -> None:
    artifact = load_artifact(place, TokenNet(depth=3))
    with adding(load_artifact(place, TokenNet(depth=3)), "report.html") as files:
        assert files is not None
        (files / "report.html").write_text("a page")
    with adding(artifact, "bench.json") as files:
        assert files is not None
        (files / "bench.json").write_text("{}")
    assert {"report.html", "bench.json"} < read_manifest(place).files.keys()
    with torch.no_grad():
        artifact.model.get_parameter("head.weight").mul_(2)
    repl_fx.save(artifact.model, place, force=True)
    before = read_manifest(place)
    with pytest.raises(OutputError, match="holds another model than was read"), adding(artifact, "bench.json"):
        pass
    with pytest.raises(OutputError, match="holds another model than was read"):
        export_artifact(artifact)
    assert read_manifest(place) == before


@pytest.mark.slow
def test_a_file_elsewhere_without_a_proof(place: Path, tmp_path: Path) -> None:
    found = export_artifact(load_artifact(place, TokenNet(depth=3)), tmp_path / "out.onnx", verify=False)
    assert found[""].to_json() == {"onnx": str(tmp_path / "out.onnx"), "bytes": found[""].bytes, "verification": None}
    assert PROOF not in read_manifest(place).files and not (place / "model.onnx").exists()
    assert read_manifest(place).verified == {}


def test_the_digest_is_that_of_data_beside_the_file_too(tmp_path: Path) -> None:
    net, x = nn.Linear(64, 64), torch.randn(2, 64)
    file = repl_fx.export_onnx(net, tmp_path / "m.onnx", (x,), external_data=True)
    known, data = digest_of(file), tmp_path / "m.onnx.data"
    assert data.exists()
    data.write_bytes(bytes([data.read_bytes()[0] ^ 1]) + data.read_bytes()[1:])
    assert digest_of(file) != known


def test_what_cannot_be_written_leaves_the_artifact(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact, before = load_artifact(place, TokenNet(depth=3)), read_manifest(place)

    def refuse(*_: object, **__: object) -> nn.Module:
        raise ExportError("an operator has no translation")

    monkeypatch.setattr("repl_fx.artifact.exporting.export_program", refuse)
    with pytest.raises(ExportError):
        export_artifact(artifact)
    assert read_manifest(place) == before
    found = artifact.result.found
    without_inputs = replace(found, captured=replace(found.captured, inputs=ExampleInputs()))
    bare = replace(artifact, result=replace(artifact.result, found=without_inputs))
    with pytest.raises(BadInput, match="has no input_ids among its example inputs"):
        export_artifact(bare, with_cache=True)

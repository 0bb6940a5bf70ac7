"""Directories of transformers from end to end: weights, artifacts, and code with permission."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

import repl_fx
from repl_fx.errors import ArtifactError
from repl_fx.sources import load_source
from tests.artifact.edits import edit_manifest
from tests.sources.own_model import AUTO_MAP, LAYERS, write_own_model

if TYPE_CHECKING:
    from .conftest import Run

pytestmark = [
    pytest.mark.zoo,
    pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed"),
]

FAST = ("--no-check", "--surrogate", "identity")
SHAPE = ("--input-shape", "2x3x16x16")
HEAD = ":ResNetForImageClassification"


@pytest.fixture(scope="session")
def transformers() -> Any:
    return pytest.importorskip("transformers")


@pytest.fixture
def resnet(transformers: Any, tmp_path: Path) -> Path:
    """A small ResNet without a head, in shards."""
    torch.manual_seed(7)
    place = tmp_path / "models" / "resnet"
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[3], layer_type="basic")
    transformers.ResNetModel(config).save_pretrained(place, max_shard_size="2KB")
    return place


@pytest.fixture
def own(transformers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory whose model is made of the code in it; tmp_path / "ran" tells when that ran."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        monkeypatch.delitem(sys.modules, name)
    write_own_model(tmp_path / "net", tmp_path / "ran")
    yield tmp_path / "net"


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["", HEAD])
def test_an_artifact_of_a_directory_goes_from_place_to_place(
    run: Run, resnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("transform", f"hf:models/resnet{suffix}", *SHAPE, "-o", "out", *FAST)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("note: ") == bool(suffix)
    shards = list(resnet.glob("*.safetensors"))
    saved = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    prefix = "resnet." if suffix else ""
    written = {
        name.removeprefix(prefix): tensor for name, tensor in load_file(tmp_path / "out/repl-fx.safetensors").items()
    }
    kept = written.keys() & saved.keys()
    assert len(shards) > 1 and len(kept) > 20
    assert all(torch.equal(written[name], saved[name]) for name in kept)
    # Weights are the artifact's own now, and where the directory lies is known from everywhere.
    for shard in shards:
        shard.unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = run("export", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert "equivalent" in result.stdout
    config = resnet / "config.json"
    config.write_text(config.read_text().replace('"relu"', '"gelu"'))
    with pytest.raises(ArtifactError, match=r"config\.json changed since"):
        repl_fx.load(tmp_path / "out")


def test_an_artifact_of_a_config_file(run: Run, resnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(resnet)
    result = run("transform", "hf:config.json", *SHAPE, "-o", tmp_path / "out", *FAST)
    assert result.exit_code == 0, result.stderr
    assert f"note: weights are random: {resnet / 'config.json'} is a config alone" in result.stdout
    monkeypatch.chdir(tmp_path)
    assert json.loads(run("inspect", "out", "--json").stdout)["notes"] == []


@pytest.mark.slow
def test_notes_are_shown_and_in_json(run: Run, resnet: Path, tmp_path: Path) -> None:
    spec = f"hf:{resnet}{HEAD}"
    expected = f"2 weights are not in {resnet}, so random: classifier.1.bias, classifier.1.weight"
    source = load_source(spec, input_shape=SHAPE[1])
    repl_fx.export_onnx(source.model, tmp_path / "net.onnx", source.args, source.kwargs)
    commands = (("inspect", spec), ("transform", spec, "--dry-run", *FAST), ("verify", spec, tmp_path / "net.onnx"))
    for command in commands:
        assert f"note: {expected}\n" in run(*command, *SHAPE).stdout
        assert json.loads(run(*command, *SHAPE, "--json").stdout)["notes"][0] == expected


def test_damaged_weights_are_one_line(run: Run, resnet: Path) -> None:
    shard = max(resnet.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:50])
    result = run("inspect", f"hf:{resnet}")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith(f"repl-fx: error: hf:{resnet}: {shard} cannot be read: ")


@pytest.mark.slow
def test_code_runs_with_permission_alone(run: Run, own: Path, tmp_path: Path) -> None:
    out, ran, trust = tmp_path / "out", tmp_path / "ran", "--trust-remote-code"
    for arguments in (["inspect"], ["transform", "-o", out], ["verify", "net.onnx"]):
        result = run(arguments[0], f"hf:{own}", *arguments[1:])
        assert (result.exit_code, ran.exists()) == (2, False)
        assert "the model brings code of its own" in result.stderr and trust in result.stderr
    result = run("transform", f"hf:{own}", "-o", out, *FAST, trust)
    assert result.exit_code == 0, result.stderr
    assert ran.exists()
    ran.unlink()
    for command in (["export", out], ["inspect", out], ["verify", out, out / "model.onnx"]):
        result = run(*command)
        assert (result.exit_code, ran.exists()) == (2, False)
        assert "was made from a model with code of its own" in result.stderr and trust in result.stderr
    for command in (["export", out], ["inspect", out], ["verify", out, out / "model.onnx"]):
        result = run(*command, trust)
        assert result.exit_code == 0, result.stderr
    assert repl_fx.load(out, trust_remote_code=True) is not None


def test_an_artifact_runs_the_code_that_it_was_made_from(run: Run, own: Path, tmp_path: Path) -> None:
    out, ran = tmp_path / "out", tmp_path / "ran"
    result = run("transform", f"hf:{own}", "-o", out, *FAST, "--trust-remote-code")
    assert result.exit_code == 0, result.stderr
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]
    ran.unlink()
    (own / "layers_net.py").write_text(f"{LAYERS}# changed\n")
    with pytest.raises(ArtifactError, match=r"layers_net\.py changed since .* was made from it"):
        repl_fx.load(out, trust_remote_code=True)
    # The user may name it all the same, but a manifest may not leave it out.
    assert repl_fx.load(out, f"hf:{own}", trust_remote_code=True) is not None
    (own / "layers_net.py").write_text(LAYERS)
    files = json.loads((out / "manifest.json").read_text())["model"]["files"]
    listed = f',\n      "{own / "layers_net.py"}": "{files[str(own / "layers_net.py")]}"'
    edit_manifest(out, lambda text: text.replace(listed, ""))
    ran.unlink(missing_ok=True)
    with pytest.raises(ArtifactError, match=r"no hash of .*layers_net\.py, which is part of it"):
        repl_fx.load(out, trust_remote_code=True)
    assert not ran.exists()


def test_permission_changes_nothing_for_an_artifact_without_code(
    run: Run, resnet: Path, own: Path, tmp_path: Path
) -> None:
    config = resnet / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "auto_map": AUTO_MAP}))
    for file in own.glob("*.py"):
        (resnet / file.name).write_text(file.read_text())
    out = tmp_path / "out"
    result = run("transform", f"hf:{resnet}", *SHAPE, "-o", out, *FAST)
    assert result.exit_code == 0, result.stderr
    assert repl_fx.load(out, trust_remote_code=True) is not None
    assert not (tmp_path / "ran").exists()

"""The source model of an artifact: where its file may lie, and what code is run."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import repl_fx
from repl_fx.artifact.manifest import Manifest
from repl_fx.artifact.model_code import build_original, build_source
from repl_fx.sources import load_source
from repl_fx.sources.source import hash_file
from repl_fx.tracing.parts.inputs import Inputs
from repl_fx.tracing.parts.origin import Model, SourceOptions
from tests.artifact.edits import edit_manifest, set_value
from tests.artifact.tied_net import MODEL
from tests.nets import TokenNet, tokens


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
    with pytest.raises(repl_fx.ArtifactError, match="was saved from Python without a model spec; name the model"):
        build_source(tmp_path, _manifest(None), None, False)


def test_a_file_like_the_one_that_is_gone_is_named_and_not_run(tmp_path: Path) -> None:
    near, gone = tmp_path / "my files" / "net.py", tmp_path / "gone" / "net.py"
    near.parent.mkdir()
    near.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    known = Model(f"{gone}:model", SourceOptions(None, 0, {}), "Net", {str(gone): hash_file(near)})
    like = f"is gone; a file like it is there: take it with --model '{near}:model' (load("
    with pytest.raises(repl_fx.ArtifactError, match=re.escape(like)):
        build_source(near.parent / "artifact", _manifest(known), None, False)
    assert not (tmp_path / "ran").exists()


WEIGHTED = """
import torch
from tests.nets import TokenNet, tokens

def model():
    return TokenNet(depth=3)

def example_inputs():
    return (torch.randn(2, 6, 16),)
"""


def test_the_original_is_built_with_the_weights_it_had(tmp_path: Path) -> None:
    file, weights, out = tmp_path / "net.py", tmp_path / "trained.safetensors", tmp_path / "out"
    file.write_text(WEIGHTED)
    torch.manual_seed(5)
    trained = TokenNet(depth=3)
    save_file(trained.state_dict(), weights)
    source = load_source(str(file), weights=weights)
    result = repl_fx.transform(source.model, source.args, surrogate="blend", check=False)
    repl_fx.save(result, out, source=source)
    # Training goes on in tensors that the source shares.
    for parameter in result.model.parameters():
        parameter.data.add_(1)
    repl_fx.save(result.model, out, source=source, force=True)
    # What is loaded and saved again still says so.
    repl_fx.save(repl_fx.load(out), out, force=True)
    original = build_original(out, None, None, False)
    assert all(torch.equal(value, original.state_dict()[name]) for name, value in trained.state_dict().items())
    save_file({name: value + 1 for name, value in trained.state_dict().items()}, weights)
    with pytest.raises(repl_fx.ArtifactError, match=r"trained.safetensors are not those that .* --teacher FILE"):
        build_original(out, None, None, False)
    assert torch.equal(build_original(out, None, weights, False).state_dict()["head.bias"], trained.head.bias + 1)
    weights.unlink()
    with pytest.raises(repl_fx.ArtifactError, match=r"the weights .*trained.safetensors, which are gone"):
        build_original(out, None, None, False)
    repl_fx.save(repl_fx.transform(trained, source.args, surrogate="blend", check=False), tmp_path / "bare")
    with pytest.raises(repl_fx.ArtifactError, match="does not say which weights"):
        build_original(tmp_path / "bare", str(file), None, False)


def test_random_weights_are_drawn_again_by_their_seed(tmp_path: Path) -> None:
    file, out = tmp_path / "net.py", tmp_path / "out"
    file.write_text(WEIGHTED)
    source = load_source(str(file), seed=3)
    before = {name: value.clone() for name, value in source.model.state_dict().items()}
    repl_fx.save(repl_fx.transform(source.model, source.args, surrogate="blend", check=False), out, source=source)
    original = build_original(out, None, None, False)
    assert all(torch.equal(value, original.state_dict()[name]) for name, value in before.items())


def test_a_model_file_with_any_other_digest_is_not_run(artifact: Path, model_file: Path) -> None:
    was, later, earlier = hash_file(model_file), False, False
    for number in range(64):
        model_file.write_text(f"# {number}\n{MODEL}")
        now = hash_file(model_file)
        later, earlier = later or now > was, earlier or now < was
        with pytest.raises(repl_fx.ArtifactError, match=r"net\.py changed since .* was made from it"):
            repl_fx.load(artifact)
        if later and earlier:
            return
    pytest.fail("no digest on either side")


@pytest.mark.slow
def test_an_artifact_saved_in_python_says_how_to_name_the_model_in_both_places(tmp_path: Path) -> None:
    repl_fx.save(repl_fx.transform(TokenNet(depth=3), (tokens(),), check=False), tmp_path / "art")
    with pytest.raises(repl_fx.ArtifactError, match=r"name the model: --model SPEC \(load\(directory, model=…\)\)$"):
        repl_fx.load(tmp_path / "art")
    differs = (
        r"its example inputs were \(0: float32\[2, 6, 16\]\) and are \(0: float64\[2, 6, 16\]\); .* give inputs as they"
    )
    with pytest.raises(repl_fx.ArtifactError, match=differs):
        repl_fx.load(tmp_path / "art", TokenNet(depth=3).double(), args=(tokens().double(),))
    with pytest.raises(repl_fx.ArtifactError, match=r"TokenNet has changed since it was transformed .*; what differs"):
        repl_fx.load(tmp_path / "art", TokenNet(depth=4), args=(tokens(batch=3),))

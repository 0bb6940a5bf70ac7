"""Compression of a trained model: each stage, and on where it was stopped."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

import repl_fx
from repl_fx.artifact.exporting import export_artifact
from repl_fx.artifact.manifest import read_manifest
from repl_fx.errors import BadInput
from repl_fx.planning.scoring.scores import Scores
from repl_fx.planning.written_options import read_scores
from repl_fx.training.calibration import score_on_data
from repl_fx.training.command import RunRequest
from repl_fx.training.compression import compress as compressing
from repl_fx.training.compression.compress import Compressed, compress_source
from repl_fx.training.compression.stages import CompressionState
from repl_fx.training.run import STATE
from tests.training.trained_net import trained_net

GIVEN = {"budget": ["flops=0.9"], "batch_size": 8, "device": "cpu", "samples": 32}
HEALING = {"heal": True, "augment": False, "lr": 0.01}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a model file and its trained weights."""
    return trained_net(tmp_path_factory.mktemp("trained"))


def _compress(place: Path, output: Path, **given: Any) -> Compressed:
    spec, weights = str(place / "model.py"), str(place / "weights.safetensors")
    return compress_source(RunRequest(spec, output, {**GIVEN, "data": f"{spec}:data", "weights": weights, **given}))


@pytest.fixture(scope="module")
def whole(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Compressed]:
    """A run that went to its end, in a directory that stays as it is."""
    directory = tmp_path_factory.mktemp("whole") / "out"
    torch.manual_seed(0)
    return directory, _compress(trained, directory, **HEALING)


def _verified(done: Compressed) -> bool:
    return all(bool(one.verification) for one in done.exported.values() if one.verification is not None)


def _weights(directory: Path) -> dict[str, torch.Tensor]:
    model: torch.nn.Module = repl_fx.load(directory)
    return model.state_dict()


@pytest.mark.slow
def test_a_trained_model_is_cut_healed_and_exported(whole: tuple[Path, Compressed], tmp_path: Path) -> None:
    shutil.copytree(whole[0], tmp_path / "out")
    done = whole[1]
    assert list(done.figures) == ["original", "cut", "healed"] and _verified(done)
    assert done.figures["original"].keys() == done.figures["healed"].keys() == {"loss", "accuracy"}
    left = done.budget["flops"]
    assert left["limit"] == 0.9 and left["expected"] == left["reached"] and (left["reached"] or 1) <= 0.9
    before, after = (done.costs[name]["flops"] for name in ("before", "after"))
    assert after / before == pytest.approx(left["reached"])
    assert done.fits and all(fit["after"] < fit["before"] for fit in done.fits)
    assert json.loads((tmp_path / "out" / "verify.json").read_text())["equivalent"] is True
    assert (tmp_path / "out" / "model.onnx").exists()
    # What the plan was made from is part of the artifact, and stays through healing and export.
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert {"scores.json", "model.onnx", "verify.json"} < manifest["files"].keys()
    state = CompressionState(tmp_path / "out").scores()
    assert state is not None and read_scores(tmp_path / "out" / "scores.json") == state.of("influence")
    # A run at its end has nothing left to do.
    again = compress_source(RunRequest(str(tmp_path / "out"), None, {}, resume=True))
    assert (again.figures, again.fits, again.exported) == (done.figures, done.fits, {})


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["evaluate", "compress", "save", "train_directory", "export_artifact"])
def test_a_run_goes_on_behind_its_last_stage(
    trained: Path,
    whole: tuple[Path, Compressed],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
) -> None:
    directory, wanted = whole

    def stopped(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(compressing, stage, stopped)
        with pytest.raises(KeyboardInterrupt):
            _compress(trained, tmp_path / "stopped", **HEALING)
    scored = (tmp_path / "stopped" / "compression" / "scores.json").read_text()
    patch_score = pytest.MonkeyPatch()
    patch_score.setattr(compressing, "score_on_data", stopped)
    try:
        resumed = compress_source(RunRequest(str(tmp_path / "stopped"), None, {}, resume=True))
    finally:
        patch_score.undo()
    assert (resumed.figures, resumed.fits, resumed.budget) == (wanted.figures, wanted.fits, wanted.budget)
    assert (directory / "compression" / "scores.json").read_text() == scored
    one, other = _weights(directory), _weights(tmp_path / "stopped")
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.slow
def test_data_without_targets_serve(trained: Path, tmp_path: Path) -> None:
    spec = str(trained / "model.py")
    done = _compress(trained, tmp_path / "out", data=f"{spec}:unlabelled", **HEALING)
    assert done.figures["original"]["accuracy_to_original"] == 1
    assert done.figures["healed"].keys() == {"loss_to_original", "accuracy_to_original"}
    with pytest.raises(BadInput, match="has no targets, and so no loss; score by influence or change"):
        _compress(trained, tmp_path / "other", data=f"{spec}:unlabelled", score="loss")
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_blocks_without_a_score_stay_and_what_is_not_fitted_says_why(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = score_on_data

    def without_one(*args: Any, **options: Any) -> Scores:
        found = score(*args, **options)
        first, other, *rest = found.blocks
        unknown = replace(other, influence=None, reasons={"influence": "its input and output differ in shape"})
        return replace(found, blocks=(first, unknown, *rest))

    done = _compress(trained, tmp_path / "out", surrogate="identity")
    (fit,) = done.fits
    assert "nothing in the result can be fitted (identity" in fit["reason"]
    monkeypatch.setattr(compressing, "score_on_data", without_one)
    with pytest.raises(repl_fx.ReplFxError, match=r"no plan has flops|nothing to replace"):
        _compress(trained, tmp_path / "other", surrogate="linear")
    # The default takes others, which need no kept ones around them.
    done = _compress(trained, tmp_path / "another")
    assert done.fits and "blocks.1" not in [fit["block"] for fit in done.fits]


def test_what_cannot_be_is_a_line_and_leaves_nothing(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for given, message in (
        ({"budget": []}, "no budget to compress to; give --budget"),
        ({"budget": ["flops=0.1"]}, r"no plan has flops at or below 0\.1 of the original"),
        ({"data": "npz:none.npz"}, r"no file none\.npz"),
        ({"weights": "none.pt"}, r"no file none\.pt"),
    ):
        with pytest.raises(BadInput, match=message):
            _compress(trained, out, **given)
        assert not out.exists(), given
    with pytest.raises(BadInput, match="no place to write to; give -o DIR"):
        compress_source(RunRequest("net.py", None, GIVEN))
    with pytest.raises(BadInput, match=r"leave out all else: repl-fx compress .* --resume"):
        compress_source(RunRequest(str(tmp_path), None, {"epochs": 2}, resume=True))
    with pytest.raises(BadInput, match="has no compression to go on with"):
        compress_source(RunRequest(str(tmp_path), None, {}, resume=True))
    with pytest.raises(BadInput, match="is a directory; give the model itself"):
        compress_source(RunRequest(str(tmp_path), out, GIVEN))


@pytest.mark.slow
def test_a_run_that_failed_leaves_the_one_before(trained: Path, whole: tuple[Path, Compressed], tmp_path: Path) -> None:
    out, first = tmp_path / "out", whole[1]
    shutil.copytree(whole[0], out)
    with pytest.raises(BadInput, match="has a compression already; go on with --resume"):
        _compress(trained, out)
    spec, weights = str(trained / "model.py"), str(trained / "weights.safetensors")
    with pytest.raises(BadInput, match=r"no file none\.npz"):
        compress_source(RunRequest(spec, out, {**GIVEN, "data": "npz:none.npz", "weights": weights}, force=True))
    assert CompressionState(out).figures() == first.figures and _weights(out)
    # One in its place heals from its own cut, and not from the checkpoint that lies there.
    again = compress_source(
        RunRequest(spec, out, {**GIVEN, "data": f"{spec}:data", "weights": weights, **HEALING}, force=True)
    )
    assert again.figures == first.figures and (out / STATE / "last.ckpt").exists()
    assert export_artifact(repl_fx.artifact.load_artifact(out))[""].verification


@pytest.mark.slow
def test_a_model_that_fixes_its_batch_is_captured_at_that_of_the_data(trained: Path, tmp_path: Path) -> None:
    said: list[str] = []
    spec, weights = str(trained / "model.py"), str(trained / "weights.safetensors")
    # Maps in place of whole blocks take the stream, whose sizes the capture has fixed; 36 samples fill no fifth batch.
    given = {**GIVEN, "surrogate": "linear", "samples": 36, **HEALING, "data": f"{spec}:data", "weights": weights}
    done = compress_source(
        RunRequest(f"{spec}:one_by_one", tmp_path / "out", given), lambda kind, lines: said.extend(lines)
    )
    assert "the model is captured at a batch of 8 alone; what fills none is left out" in said
    assert list(done.figures) == ["original", "cut", "healed"] and _verified(done)
    model = repl_fx.load(tmp_path / "out")
    assert model(torch.randn(8, 1, 4, 4)).shape == (8, 3)


@pytest.mark.slow
def test_dimensions_that_are_to_stay_are_fixed_in_the_file(trained: Path, tmp_path: Path) -> None:
    done = _compress(trained, tmp_path / "out", fixed="batch")
    assert _verified(done) and read_manifest(tmp_path / "out").fixed == ("batch",)
    (given,) = onnx.load(tmp_path / "out" / "model.onnx").graph.input
    assert [dim.dim_value for dim in given.type.tensor_type.shape.dim] == [8, 1, 4, 4]

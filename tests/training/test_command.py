"""From a specification to runs side by side, and on where they were stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch

import repl_fx
from repl_fx.artifact.manifest import read_manifest
from repl_fx.errors import BadInput
from repl_fx.training import command, run as running
from repl_fx.training.command import COMPARISON, OTHERS, RunRequest, TrainingRun, begin, train_side_by_side
from repl_fx.training.run import CHECKPOINT, CONFIG, STATE, settings_of
from repl_fx.training.train_config import TrainConfig
from tests.training.trained_net import MODEL

FAST = {"epochs": 1, "batch_size": 8, "device": "cpu", "compare": True, "seeds": 2, "surrogate": "blend"}


@pytest.fixture
def spec(tmp_path: Path) -> str:
    path = tmp_path / "model.py"
    path.write_text(dedent(MODEL))
    return str(path)


def _begin(spec: str, output: Path | None = None, resume: bool = False, **given: Any) -> TrainingRun:
    given = {} if resume else {**FAST, "data": f"{spec}:data", **given}
    return begin(RunRequest(spec, output, given, resume=resume))


def _weights(directory: Path) -> dict[str, torch.Tensor]:
    model: torch.nn.Module = repl_fx.load(directory)
    return model.state_dict()


@pytest.mark.slow
def test_a_comparison_that_was_stopped_goes_on(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    rows = train_side_by_side(_begin(spec, whole))
    assert [row.variant for row in rows] == ["original", "depth-pruned", "rewritten"]
    assert all(len(row.figures["accuracy"]) == 2 and len(row.inputs_per_second) == 2 for row in rows)
    assert rows[0].parameters > rows[2].parameters >= rows[1].parameters
    assert {folder.name for folder in (whole / STATE / OTHERS).iterdir()} == {
        *("original-seed-0", "original-seed-1", "depth-pruned-seed-0", "depth-pruned-seed-1", "rewritten-seed-1")
    }
    assert json.loads((whole / STATE / COMPARISON).read_text())[0]["figures"] == rows[0].figures

    begun, own = [], running.train_once

    def until(name: str) -> Any:
        def train(*args: Any, folder: str = "", **kwargs: Any) -> Any:
            begun.append(folder)
            if folder.endswith(name):
                raise KeyboardInterrupt
            return own(*args, folder=folder, **kwargs)

        return train

    def patched(name: str) -> None:
        for module in (command, running):
            monkeypatch.setattr(module, "train_once", until(name))

    # In the first of all, whose settings are there already, and behind the run's own.
    patched("original-seed-0")
    with pytest.raises(KeyboardInterrupt):
        train_side_by_side(_begin(spec, stopped))
    assert settings_of(stopped).compare and settings_of(stopped).seeds == 2
    patched("original-seed-1")
    with pytest.raises(KeyboardInterrupt):
        train_side_by_side(_begin(str(stopped), resume=True))
    begun.clear()
    patched("never")
    again = train_side_by_side(_begin(str(stopped), resume=True))
    # The artifact's own model is looked at once more: its weights may not have been saved.
    assert begun == ["", "others/original-seed-1", "others/depth-pruned-seed-1", "others/rewritten-seed-1"]
    assert [row.figures for row in again] == [row.figures for row in rows]
    one, other = _weights(whole), _weights(stopped)
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_member_that_cannot_be_trained_is_a_row(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders, own = [], running.train_once

    def train(*args: Any, folder: str = "", **kwargs: Any) -> Any:
        folders.append(folder)
        if "pruned" in folder:
            raise BadInput("the loss is nan")
        return own(*args, folder=folder, **kwargs)

    monkeypatch.setattr(command, "train_once", train)
    rows = train_side_by_side(_begin(spec, tmp_path / "out", seeds=1))
    assert [row.reason for row in rows] == ["", "seed 0: the loss is nan", ""]
    # The run's own has the directory itself.
    assert folders == ["others/original-seed-0", "others/depth-pruned-seed-0"]


def test_settings_that_an_artifact_cannot_follow_are_a_line(spec: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _begin(spec, out)
    for given, flag in (
        ({"compare": True}, "--compare"),
        ({"every": 3}, "--every"),
        ({"input_shape": "2x3"}, "--input"),
        ({"fixed": "batch"}, "--fixed"),
    ):
        with pytest.raises(BadInput, match=f"has its blocks replaced already; leave out {flag}"):
            begin(RunRequest(str(out), None, {"device": "cpu", **given}))
    with pytest.raises(BadInput, match="has one set of weights; leave out --seeds"):
        begin(RunRequest(str(out), None, {"seeds": 2}))
    assert not (out / STATE / CHECKPOINT).exists()


def test_a_model_that_fixes_its_batch_is_trained_at_that_of_the_settings(spec: str, tmp_path: Path) -> None:
    given = {"epochs": 1, "batch_size": 8, "device": "cpu", "surrogate": "linear", "data": f"{spec}:data"}
    run = begin(RunRequest(f"{spec}:one_by_one", tmp_path / "out", given))
    assert run.config.full_batches and run.config.input_shape == "8x1x4x4:float32"
    assert command.train_directory(run).figures["accuracy"] >= 0
    assert repl_fx.load(tmp_path / "out")(torch.randn(8, 1, 4, 4)).shape == (8, 3)


def test_dimensions_that_are_to_stay_are_those_of_the_run(spec: str, tmp_path: Path) -> None:
    run = _begin(spec, tmp_path / "out", fixed="batch")
    assert run.config.input_shape == "8x1x4x4:float32" and run.config.full_batches
    assert read_manifest(tmp_path / "out").fixed == ("batch",)


@pytest.mark.slow
@pytest.mark.zoo
def test_a_type_of_transformers_is_trained_on_text_with_its_head(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "corpus.txt").write_bytes(bytes(range(256)) * 8)
    given = {"steps": 1, "batch_size": 4, "device": "cpu", "data": f"text:{tmp_path / 'corpus.txt'}", "context": 160}
    run = begin(RunRequest("hf:gpt2", tmp_path / "out", {**given, "arg": ["n_layer=3"], "surrogate": "bottleneck"}))
    assert run.notes[0] == "the class is GPT2LMHeadModel, for language-modelling"
    assert run.notes[1].startswith("built with n_positions=160, as the data want it")
    figures = command.train_directory(run).figures
    assert figures["bits_per_byte"] > 0
    # Built again without its data.
    ids = torch.randint(256, (2, 160))
    assert repl_fx.load(tmp_path / "out")(ids).logits.shape == (2, 160, 256)


@pytest.mark.parametrize("again", ["--resume", "torchrun"])
def test_a_command_that_is_given_again_goes_on_where_its_run_has_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: str
) -> None:
    out = tmp_path / "out"
    state = out / STATE
    request = RunRequest("model.py", out, {"epochs": 3}, resume=again == "--resume")
    if again == "torchrun":
        assert request.continued() is request
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    begins = request.continued()
    assert (begins.spec, begins.output, begins.resume, begins.force) == ("model.py", out, False, False)
    state.mkdir(parents=True)
    (state / CONFIG).write_text(TrainConfig().changed(epochs=3, batch_size=7).to_yaml())
    anew = request.continued()
    assert (anew.output, anew.resume, anew.force) == (out, False, True)
    (state / CHECKPOINT).touch()
    goes_on = request.continued()
    assert (goes_on.spec, goes_on.output, goes_on.resume) == (str(out), None, True)
    assert goes_on.settings().batch_size == 7
    with pytest.raises(BadInput, match=r"has the run of other settings, with --epochs 3; give another place"):
        replace(request, given={"epochs": 4}).continued()

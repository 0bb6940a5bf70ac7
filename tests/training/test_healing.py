"""Healing: a model that was cut comes near the original again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import repl_fx
from repl_fx.sources import load_source
from repl_fx.training.command import RunRequest, begin, heal_directory
from repl_fx.training.healing import FIGURES, Healed, settings_to_heal
from repl_fx.training.run import STATE
from tests.training.trained_net import trained_net


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a model file and its trained weights."""
    return trained_net(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def cut(trained: Path, tmp_path: Path) -> Path:
    """An artifact of the trained model."""
    source = load_source(f"{trained / 'model.py'}", weights=trained / "weights.safetensors")
    result = repl_fx.transform(source.model, source.args, surrogate="bottleneck", check=False)
    return repl_fx.save(result.model, tmp_path / "cut", source=source)


def _healed(cut: Path, spec: str, **given: Any) -> Healed:
    given = {"batch_size": 8, "device": "cpu", "augment": False, "epochs": 4, "lr": 0.01, "data": spec, **given}
    return heal_directory(begin(RunRequest(str(cut), None, given, defaults=settings_to_heal())))


@pytest.mark.slow
def test_a_cut_model_comes_back(trained: Path, cut: Path) -> None:
    found = _healed(cut, f"{trained / 'model.py'}:data")
    loss = {name: figures["loss"] for name, figures in found.figures.items()}
    # With targets beside the original, it may end below that.
    assert loss["healed"] < loss["cut"] > loss["original"]
    assert json.loads((cut / STATE / FIGURES).read_text()) == found.figures
    config = begin(RunRequest(str(cut), None, {}, resume=True)).config
    assert (config.teacher, config.teacher_values) == ("original", 1.0)


@pytest.mark.parametrize("data", ["unlabelled", "alone"])
def test_surrogates_learn_without_targets_and_nothing_else(trained: Path, cut: Path, data: str) -> None:
    before: dict[str, torch.Tensor] = repl_fx.load(cut).state_dict()
    found = _healed(cut, f"{trained / 'model.py'}:{data}", learn="surrogates", epochs=2)
    loss = {name: figures["loss_to_original"] for name, figures in found.figures.items()}
    assert loss["original"] < loss["healed"] < loss["cut"]
    after: dict[str, torch.Tensor] = repl_fx.load(cut).state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed and all(".surrogate." in name for name in changed)


def test_a_graph_learns_from_values_too(trained: Path, tmp_path: Path) -> None:
    source = load_source(f"{trained / 'model.py'}", weights=trained / "weights.safetensors")
    result = repl_fx.transform(source.model, source.args, surrogate="linear", settings={"merged": True}, check=False)
    assert result.in_place.model is None
    directory = repl_fx.save(result, tmp_path / "graph", source=source)
    spec = f"{trained / 'model.py'}:data"
    found = _healed(directory, spec, epochs=1)
    assert found.trained.steps == 6 and found.figures["healed"]["loss"] < found.figures["cut"]["loss"]
    assert begin(RunRequest(str(directory), None, {}, resume=True)).config.teacher_values == 1.0
    # What is trained is what is saved: the graph as it was made.
    assert set(repl_fx.load(directory).state_dict()) == set(result.module.state_dict())

"""Tests for repl_fx.training.train: training in Python, on objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import repl_fx
from repl_fx.errors import BadInput
from repl_fx.training.run import STATE
from tests.nets import TokenNet

VALUES = torch.randn(32, 6, 16, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(VALUES, VALUES.mean((1, 2)).gt(0).long())
FAST: dict[str, Any] = {"epochs": 1, "batch_size": 16, "device": "cpu"}


def _cut() -> repl_fx.TransformResult:
    torch.manual_seed(0)
    return repl_fx.transform(TokenNet(depth=4), (VALUES[:2],), every=2, copy=True)


def test_a_model_is_trained_and_no_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = TokenNet(depth=4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained = repl_fx.train(model, (DATA, DATA), **FAST)
    assert trained.model is model
    assert 0 <= trained.figures["accuracy"] <= 1 and "accuracy" in repr(trained)
    assert all(not torch.equal(tensor, before[name]) for name, tensor in model.named_parameters())
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("samples", "steps"), [(33, 2), (15, 1), (32, 2)])
def test_a_batch_that_is_not_full_is_left_out_of_a_data_set(samples: int, steps: int) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    data = TensorDataset(torch.randn(samples, 4), torch.arange(samples) % 2)
    assert repl_fx.train(model, (data, data), **FAST).steps == steps


def test_a_directory_keeps_the_run_and_goes_on(tmp_path: Path) -> None:
    result = _cut()
    repl_fx.train(result, (DATA, DATA), directory=tmp_path, **FAST)
    assert (tmp_path / STATE).is_dir()
    again = repl_fx.train(result, (DATA, DATA), directory=tmp_path, resume=True, **{**FAST, "epochs": 2})
    assert again.model is result.model


def test_a_cut_model_is_healed_against_the_original() -> None:
    result = _cut()
    healed = repl_fx.heal(result, (DATA, DATA), **FAST)
    assert set(healed.figures) == {"original", "cut", "healed"}
    assert healed.model is result.model


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epoch": 2}, "train: no setting 'epoch'.*did you mean epochs"),
        ({"epochs": "many"}, "train: "),
        ({"resume": True}, "give directory"),
        ({"replace_at": 1}, "result of a transform"),
        ({"compare": True}, "compare is a setting of repl-fx train"),
    ],
)
def test_settings_that_are_none_are_refused_in_a_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message) as refused:
        repl_fx.train(TokenNet(depth=4), (DATA, DATA), **settings)
    assert "\n" not in str(refused.value)


def test_healing_names_itself_and_wants_an_original() -> None:
    with pytest.raises(BadInput, match="heal: no setting 'epoch'"):
        repl_fx.heal(_cut(), (DATA, DATA), epoch=2)
    with pytest.raises(BadInput, match="original=…"):
        repl_fx.heal(TokenNet(depth=4), (DATA, DATA))


@pytest.mark.parametrize("call", [repl_fx.train, repl_fx.heal])
def test_data_that_are_named_are_those_that_are_read(call: Any, tmp_path: Path) -> None:
    missing = f"npz:{tmp_path / 'missing.npz'}"
    with pytest.raises(BadInput, match=r"missing\.npz"):
        call(_cut(), missing, **FAST)

"""Samples of a data set to score a model on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

import repl_fx
from repl_fx.errors import BadInput
from repl_fx.training.calibration import calibration, score_on_data
from repl_fx.training.data.data_set import Data
from repl_fx.training.loading import read_data
from repl_fx.training.train_config import TrainConfig

PICTURES = torch.randn(2, 1, 8, 8)
DIGITS = read_data(TrainConfig())


class Digits(nn.Module):
    """Pictures of digits to classes."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))
        self.head = nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return self.head(x)  # type: ignore[no-any-return]


def test_samples_are_as_many_as_asked_for_and_the_same_each_time() -> None:
    batches, loss = calibration(Digits(), DIGITS, TrainConfig(), 50, with_loss=True)
    first, second = list(batches()), list(batches())
    assert [len(targets) for _, targets in first] == [32, 18]
    for (ours, labels), (theirs, again) in zip(first, second, strict=True):
        assert torch.equal(ours[0], theirs[0]) and torch.equal(labels, again)
    assert loss is not None and loss(torch.zeros(32, 10), first[0][1]).shape == ()
    others, loss = calibration(Digits(), DIGITS, TrainConfig(seed=1), 50, with_loss=False)
    assert loss is None and not torch.equal(next(others())[1], first[0][1])


class _Counted(Dataset[tuple[torch.Tensor, int]]):
    """Samples that are made one by one; notes which were asked for, in this process."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        self.read.append(index)
        return torch.full((1, 8, 8), float(index)), index % 10


def test_samples_in_files_are_read_once_and_by_this_process() -> None:
    split = _Counted()
    data = Data("mine", "classification", 10, (1, 8, 8), split, split)
    batches, _ = calibration(Digits(), data, TrainConfig(), 20, with_loss=False)
    first, second = ([given[0] for given, _ in batches()] for _ in range(2))
    assert sorted(split.read) == sorted(set(split.read)) and len(split.read) >= 20
    assert len(torch.cat(first)) == 20 and torch.equal(torch.cat(first), torch.cat(second))
    every, _ = calibration(Digits(), data, TrainConfig(), 50, with_loss=False)
    assert [len(targets) for _, targets in every()] == [32, 8]


def test_full_batches_alone() -> None:
    config = TrainConfig(batch_size=20, full_batches=True)
    for samples, sizes in ((50, [20, 20]), (8, [20])):
        batches, _ = calibration(Digits(), DIGITS, config, samples, with_loss=False)
        assert [len(targets) for _, targets in batches()] == sizes


def test_scores_on_a_data_set() -> None:
    found = repl_fx.capture_parts(Digits().eval(), (PICTURES,))
    scores = score_on_data(found, DIGITS, TrainConfig(), "loss", samples=40, greedy=1)
    assert (scores.samples, scores.kinds, scores.greedy) == (40, ("influence", "change", "loss"), ("blocks.1",))
    without = score_on_data(found, DIGITS, TrainConfig(), "influence", samples=40)
    assert without.of("influence") == scores.of("influence") and without.loss is None


LOADERS = """
import pytorch_lightning as pl
import torch
class Mine(pl.LightningDataModule):
    pass
def module():
    return Mine()
def loaders():
    return [[(torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64))] * 3] * 2
"""


def test_data_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(LOADERS)
    config = TrainConfig(data=f"{tmp_path}/mine.py:loaders")
    found = repl_fx.capture_parts(Digits().eval(), (PICTURES,))
    assert score_on_data(found, read_data(config), config, "gradient", samples=10).samples == 10
    with pytest.raises(BadInput, match="returns a Mine; return"):
        config = config.changed(data=f"{tmp_path}/mine.py:module")
        calibration(Digits(), read_data(config), config, 10, with_loss=False)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Digits(4), "Digits returns 4 logits, and digits has 10 classes"),
        (nn.Linear(3, 10), "Linear does not take inputs of digits, which are 1x8x8: "),
    ],
)
def test_a_loss_that_there_is_not_is_a_line(model: nn.Module, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        calibration(model, DIGITS, TrainConfig(), 50, with_loss=True)

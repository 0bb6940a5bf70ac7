"""Checkpoints are whole or not there, and steps draw by their number."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import repl_fx
from repl_fx.training.safe_checkpoints import Checkpoints, SeededSteps, WholeCheckpoints

MODULE: Any = SimpleNamespace(device=torch.device("cpu"))


def _trainer(step: int, epoch: int = 0) -> Any:
    saved: list[Path] = []
    return SimpleNamespace(
        global_step=step, current_epoch=epoch, global_rank=0, saved=saved, save_checkpoint=lambda p: saved.append(p)
    )


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    writer, place = WholeCheckpoints(), tmp_path / "last.ckpt"
    with pytest.raises(repl_fx.OutputError, match="none was written before"):
        writer.save_checkpoint({"bad": _Full()}, place)
    writer.save_checkpoint({"step": 1}, place)
    with pytest.raises(repl_fx.OutputError, match=r"cannot be written: No space left on device; the one before"):
        writer.save_checkpoint({"step": torch.empty(0), "bad": _Full()}, place)
    assert torch.load(place) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


class _Full:
    """Fails as a disk without space does."""

    def __reduce__(self) -> Any:
        raise OSError(28, "No space left on device")


def test_checkpoints_come_every_so_many_steps_and_not_between_two(tmp_path: Path) -> None:
    callback, trainer = Checkpoints(tmp_path / "last.ckpt", 2), _trainer(4)
    callback.on_train_start(trainer, MODULE)
    counts = []
    # Two batches to a step.
    for step in (4, 5, 5, 6, 6, 7, 7, 8):
        trainer.global_step = step
        callback.on_train_batch_end(trainer, MODULE, {"loss": torch.tensor(1.0)}, None, 0)
        counts.append(len(trainer.saved))
    assert counts == [0, 0, 0, 1, 1, 1, 1, 2]
    callback.on_train_epoch_end(trainer, MODULE)
    assert len(trainer.saved) == 3


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path, loss: float) -> None:
    callback, trainer = Checkpoints(tmp_path / "last.ckpt", 1), _trainer(3)
    with pytest.raises(repl_fx.BadInput, match=f"the loss is {loss} at step 3; .* no checkpoint is yet"):
        callback.on_train_batch_end(trainer, MODULE, {"loss": torch.tensor(loss)}, None, 0)
    assert not trainer.saved


def test_each_batch_has_random_numbers_of_its_own() -> None:
    def drawn(seed: int, epoch: int, batch: int) -> tuple[float, float, float]:
        SeededSteps(seed).on_train_batch_start(_trainer(0, epoch), MODULE, None, batch)
        return float(torch.rand(())), float(np.random.rand()), random.random()

    places = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]
    assert len({drawn(*place) for place in places}) == 4
    assert drawn(0, 0, 1) == drawn(0, 0, 1)

"""Checkpoints that are whole or not there, and steps that draw the same random numbers in a run that was resumed."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from repl_fx.errors import BadInput, OutputError, first_line
from repl_fx.running.untouched import seed_everything

# What a checkpoint says of the model it is of.
FINGERPRINT = "repl_fx_model"


def part_of(place: Path) -> Path:
    """The path that a checkpoint is written to."""
    return place.with_name(f".{place.name}.part")


def before(place: Path) -> Path:
    """The path of the checkpoint before, while a new directory takes its place."""
    return place.with_name(f".{place.name}.before")


def discard(place: Path) -> None:
    """Delete a checkpoint, of either kind, where there is one."""
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def discard_all(place: Path) -> None:
    """Delete a checkpoint with what its writing may have left."""
    for path in (place, before(place), part_of(place)):
        discard(path)


def last_whole(place: Path) -> Path | None:
    """The checkpoint at a place, or the one before where a new one had not come to its place; None for none."""
    return next((path for path in (place, before(place)) if path.exists()), None)


def unwritten(place: Path, why: str) -> OutputError:
    """The error of a checkpoint that could not be written, with what is left to go on from."""
    left = "the one before is whole" if last_whole(place) else "none was written before, and the run must begin anew"
    return OutputError(f"the checkpoint {place} cannot be written: {why}; {left}")


def header_of(checkpoint: Path) -> dict[str, Any]:
    """Read what a checkpoint says besides tensors, which stay in the file, or in the shards of a directory.

    Raises:
        BadInput: it cannot be read.
    """
    sharded = checkpoint.is_dir()
    return read_checkpoint(checkpoint, "meta.pt" if sharded else "", mmap=not sharded)


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint under another name, and gives it its own when it is complete."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            OutputError: the place cannot be written; the checkpoint before stays.
        """
        place = Path(path)
        part = part_of(place)
        try:
            super().save_checkpoint(checkpoint, part, storage_options)
            os.replace(part, place)
        except (OSError, RuntimeError) as problem:
            part.unlink(missing_ok=True)
            # torch says of a full disk that a stream failed.
            why = problem.strerror if isinstance(problem, OSError) and problem.strerror else problem
            raise unwritten(place, str(why)) from problem


def read_checkpoint(place: Path, file: str = "", *, mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint.

    Args:
        place: the file, or the directory of a sharded one.
        file: the one of a directory to read.
        mmap: leave tensors in the file, which must not be replaced meanwhile.

    Raises:
        BadInput: it cannot be read.
    """
    try:
        found: dict[str, Any] = torch.load(place / file, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as problem:
        raise BadInput(f"the checkpoint {place} cannot be read: {first_line(problem)}") from problem
    return found


class Checkpoints(pl.Callback):
    """Saves a checkpoint every so many steps, and at the end of each epoch; refuses a loss that is no number.

    Args:
        place: the file; the next checkpoint takes its place. None to look at losses alone.
        every: steps of the optimizer between checkpoints; None for one at the end of each epoch alone.
        fingerprint: of the model, which checkpoints say.
        look_every: batches between two looks at the losses, each of which waits for a GPU.
    """

    def __init__(self, place: Path | None, every: int | None, look_every: int = 1, fingerprint: str = "") -> None:
        self.fingerprint = fingerprint
        self.place, self.every, self.look_every = place, every, look_every
        self._step = self._saved = 0
        # The first loss that is no number, and its step, on the device.
        self._bad: torch.Tensor | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the step that the run begins at."""
        self._step = self._saved = trainer.global_step
        self._bad = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the loss of the step, and save where it is time to."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, torch.Tensor):
            value = loss.detach().float()
            found = torch.stack((value, torch.full_like(value, trainer.global_step)))
            self._bad = found if self._bad is None else torch.where(self._bad[0].isfinite(), found, self._bad)
        if (batch_idx + 1) % self.look_every == 0 or pl_module.device.type == "cpu":
            self._require_numbers()
        # Between two steps, gradients that have been added up would be lost.
        stepped, self._step = trainer.global_step > self._step, trainer.global_step
        if stepped and self.every is not None and trainer.global_step - self._saved >= self.every:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save."""
        self._save(trainer)

    def _require_numbers(self) -> None:
        if self._bad is None:
            return
        (loss, step), last = self._bad.tolist(), self.place
        if not math.isfinite(loss):
            raise BadInput(
                f"the loss is {loss} at step {step:.0f}; look for inputs that are no numbers, or give a lower --lr or "
                f"--clip; {f'{last} is the last that is good' if last and last.exists() else 'no checkpoint is yet'}"
            )

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Say what model it is of."""
        checkpoint[FINGERPRINT] = self.fingerprint

    def _save(self, trainer: pl.Trainer) -> None:
        self._require_numbers()
        if self.place is not None:
            trainer.save_checkpoint(self.place)
        self._saved = trainer.global_step


class SeededSteps(pl.Callback):
    """Seeds the random numbers of each batch, by the number of the batch: a run that goes on draws what it would have.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed torch, numpy and Python."""
        place = f"{self.seed} {trainer.current_epoch} {batch_idx} {trainer.global_rank}"
        number = int.from_bytes(hashlib.sha256(place.encode()).digest()[:8], "big", signed=True)
        seed_everything(number, pl_module.device)

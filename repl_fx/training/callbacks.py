"""What a run does beside its steps: shares syntheses, and logs speed and memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping, Sized
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from repl_fx.display.progress import tell
from repl_fx.surrogates.shared.synthesis import shared_synthesis

# What is logged besides the loss and the figures of a task.
SPEEDS = ("inputs_per_second", "memory_mib")


def step_of(trainer: pl.Trainer, batch_idx: int) -> range:
    """The batches of the epoch whose gradients make the step that a batch is of; of the last step they may be fewer."""
    first = batch_idx - batch_idx % trainer.accumulate_grad_batches
    return range(first, min(first + trainer.accumulate_grad_batches, int(trainer.num_training_batches)))


class SharedSyntheses(pl.Callback):
    """Runs each synthesis once for all batches whose gradients make one step."""

    def __init__(self) -> None:
        self._open: Any = None
        self._is_last = False

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin with the first batch of a step."""
        self._is_last = batch_idx == step_of(trainer, batch_idx)[-1]
        if self._open is None:
            self._open = shared_synthesis(pl_module)
            self._open.__enter__()

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End behind the last batch of a step: gradients go through the syntheses while all are scaled alike."""
        if self._is_last:
            self._end()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """End where the last batch had no loss, and so no backward pass."""
        self._end()

    def _end(self) -> None:
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open = None


class ToldSteps(pl.Callback):
    """Tells the batch of the epoch that a run is at, with its loss, and the figures of the evaluation before.

    Args:
        every: batches between two that are told.
    """

    def __init__(self, every: int) -> None:
        self.every = every

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Tell the first batch, and each behind so many."""
        if batch_idx % self.every == 0:
            self._tell(trainer, batch_idx + 1)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell the figures at the end of an epoch."""
        self._tell(trainer, int(trainer.num_training_batches))

    def _tell(self, trainer: pl.Trainer, done: int) -> None:
        known = [(name, value) for name, value in trainer.callback_metrics.items() if name not in SPEEDS]
        epochs = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
        figures = (f", {name} {float(value):.4g}" for name, value in known)
        tell(f"epoch {trainer.current_epoch + 1}{epochs}{''.join(figures)}", done, int(trainer.num_training_batches))


class Speed(pl.Callback):
    """Logs inputs a second and memory.

    Attributes:
        rates: inputs a second in each epoch, with loading and without the evaluation.

    Args:
        every: steps of the optimizer between two figures.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.rates: list[float] = []
        self._since = self._began = time.perf_counter()
        self._seen = self._in_epoch = self._step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the peak of the memory be that of this run."""
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    @property
    def rate(self) -> float | None:
        """The median of the epochs; None where there was none."""
        return median(self.rates) if self.rates else None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to count: the evaluation before does not."""
        self._since = self._began = time.perf_counter()
        self._seen = self._in_epoch = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the inputs of the batch."""
        # Those of all processes, which take as many each.
        self._seen += trainer.world_size * _inputs_in(batch)
        last = trainer.is_last_batch
        if not last and (trainer.global_step == self._step or trainer.global_step % self.every):
            return
        self._step = trainer.global_step
        now = time.perf_counter()
        self._in_epoch += self._seen
        if last:
            # Before the evaluation, which comes within the epoch.
            self.rates.append(self._in_epoch / (now - self._began))
        speeds = self._seen / (now - self._since), peak_mib(pl_module.device)
        pl_module.log_dict(dict(zip(SPEEDS, speeds, strict=True)))
        self._since, self._seen = now, 0


def _inputs_in(batch: Any) -> int:
    """Samples in a batch: in the inputs of a pair, in the first entry of a mapping; 1 where neither tells."""
    first = batch[0] if isinstance(batch, tuple | list) and len(batch) == 2 else batch
    if isinstance(first, Mapping):
        first = next(iter(first.values()), None)
    scalar = isinstance(first, Tensor) and first.ndim == 0
    return len(first) if isinstance(first, Sized) and not scalar else 1


def peak_mib(device: torch.device) -> float:
    """The most memory so far: of tensors on a GPU since the run began, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak / (2**20 if sys.platform == "darwin" else 2**10)

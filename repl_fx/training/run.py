"""A training run: from a model and data to trained weights, in a directory from which it can be resumed.

`DIR/train_state` has

- `config.yaml`: the settings;
- `last.ckpt`: weights, optimizer, schedule, place in the data;
- `logs/from_step_N/metrics.csv`: the log, from the step on at which the run began or went on;
- `result.json`: the figures of the last evaluation.
"""

from __future__ import annotations

import json
import logging
import resource
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging, RichProgressBar
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import nn

from repl_fx.errors import BadInput, ForeignError, OutputError, first_line, foreign_code
from repl_fx.running.untouched import in_mode
from repl_fx.surrogates.shared.synthesis import shared_synthesis
from repl_fx.training.config import TrainConfig, read_config
from repl_fx.training.data.kinds import Data
from repl_fx.training.loading import test_loader, training_loader
from repl_fx.training.module import Training, logits_of
from repl_fx.training.safe_checkpoints import Checkpoints, SeededSteps, WholeCheckpoints

STATE = "train_state"
CONFIG, CHECKPOINT, RESULT, LOGS = "config.yaml", "last.ckpt", "result.json", "logs"
_PRECISIONS: Mapping[str, Any] = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}


@dataclass(frozen=True)
class Trained:
    """The result of a run.

    Attributes:
        figures: those of the last evaluation, by name.
        steps: of the optimizer, in all.
        resumed: the step at which the run went on; None where it began anew.
    """

    figures: dict[str, float]
    steps: int
    resumed: int | None


class SharedSyntheses(pl.Callback):
    """Runs each synthesis once for all batches whose gradients make one step."""

    def __init__(self) -> None:
        self._open: Any = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin with the first batch of a step."""
        if self._open is None:
            self._open = shared_synthesis(pl_module)
            self._open.__enter__()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """End: gradients go through the syntheses now, before they are clipped."""
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open = None


class Speed(pl.Callback):
    """Logs inputs a second and memory.

    Args:
        every: batches between two figures.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._since, self._seen = time.perf_counter(), 0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to count: the evaluation before does not."""
        self._since, self._seen = time.perf_counter(), 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the inputs of the batch."""
        self._seen += len(batch[0])
        if (batch_idx + 1) % self.every == 0:
            took = time.perf_counter() - self._since
            figures = {"inputs_per_second": self._seen / took, "memory_mib": _peak_mib(pl_module.device)}
            pl_module.log_dict(figures, prog_bar=True)
            self._since, self._seen = time.perf_counter(), 0


def _peak_mib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def train(
    model: nn.Module,
    data: Data,
    config: TrainConfig,
    directory: Path,
    *,
    resume: bool = False,
    show: bool = False,
) -> Trained:
    """Train a model, which has its trained weights behind the call.

    Args:
        model: in place or a graph; takes a batch of inputs, returns logits.
        data: see `repl_fx.training.data`.
        config: the settings; those of the run before where it goes on.
        directory: of the run; its state goes into `train_state`.
        resume: whether to go on from the last checkpoint.
        show: whether to show a progress bar.

    Raises:
        BadInput: data and model do not fit, a loss that is no number, or nothing to go on from.
        OutputError: the directory cannot be written.
    """
    state = directory / STATE
    checkpoint = state / CHECKPOINT
    if resume and not checkpoint.exists():
        raise BadInput(f"{directory} has no {STATE}/{CHECKPOINT} to go on from; train it without --resume")
    resumed = _step_of(checkpoint) if resume else None
    accelerator = _accelerator(config.device)
    device = torch.device("cuda" if accelerator == "gpu" else "cpu")
    loader, test = training_loader(data, config, device), test_loader(data, config, device)
    steps = config.epochs * -(-len(loader) // config.accumulate)
    _require_fit(model, test, data)
    if not resume:
        _begin(state, config)
    module = Training(model, config, data.task, data.classes, steps)
    if config.compile:
        module.model.compile()
    with _quiet(), _interruptible():
        trainer = pl.Trainer(
            default_root_dir=state,
            accelerator=accelerator,
            devices=1,
            max_epochs=config.epochs,
            precision=_PRECISIONS[config.precision],
            accumulate_grad_batches=config.accumulate,
            gradient_clip_val=config.clip or None,
            log_every_n_steps=config.log_every,
            logger=list(_loggers(state, config, resumed or 0)),
            callbacks=list(_callbacks(checkpoint, config, show=show)),
            enable_progress_bar=show,
            plugins=[WholeCheckpoints()],
            enable_checkpointing=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            deterministic=config.deterministic,
            use_distributed_sampler=False,
        )
        try:
            trainer.fit(module, loader, test, ckpt_path=checkpoint if resume else None, weights_only=True)
            figures = _figures(trainer)
            if not figures:
                # The run was at its end already.
                trainer.validate(module, test, verbose=False)
                figures = _figures(trainer)
            (state / RESULT).write_text(json.dumps({"steps": steps, **figures}, indent=2) + "\n")
        except OSError as problem:
            raise OutputError(f"{state} cannot be written: {problem.strerror or problem}") from problem
    return Trained(figures, steps, resumed)


def _figures(trainer: pl.Trainer) -> dict[str, float]:
    found = trainer.callback_metrics.items()
    return {name.removeprefix("test_"): float(value) for name, value in found if name.startswith("test_")}


def settings_of(directory: Path) -> TrainConfig:
    """The settings of the run in a directory."""
    return read_config(directory / STATE / CONFIG)


def _begin(state: Path, config: TrainConfig) -> None:
    """Make the directory of a new run; of one before nothing stays."""
    try:
        state.mkdir(parents=True, exist_ok=True)
        for name in (CHECKPOINT, RESULT):
            (state / name).unlink(missing_ok=True)
        shutil.rmtree(state / LOGS, ignore_errors=True)
        (state / CONFIG).write_text(config.to_yaml())
    except OSError as problem:
        raise OutputError(f"{state} cannot be written: {problem.strerror or problem}") from problem


def _accelerator(device: str) -> str:
    """The accelerator of Lightning for a device of torch."""
    kind = device.partition(":")[0]
    if kind == "auto":
        return "gpu" if torch.cuda.is_available() else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        raise BadInput("there is no CUDA device here; choose another --device")
    if kind not in ("cpu", "cuda"):
        raise BadInput(f"{device} is no device to train on; give cpu, cuda or auto")
    return "gpu" if kind == "cuda" else "cpu"


def _require_fit(model: nn.Module, test: Any, data: Data) -> None:
    """Refuse a model that does not take the inputs, or has fewer classes than there are."""
    inputs, _ = next(iter(test))
    kind = type(model).__name__
    try:
        with in_mode(model, False), torch.no_grad(), foreign_code():
            logits = logits_of(model.to(inputs.device)(inputs[:2]))
    except ForeignError as failed:
        shape = "x".join(map(str, inputs.shape[1:]))
        raise BadInput(
            f"{kind} does not take inputs of {data.name}, which are {shape}: {first_line(failed.problem)}"
        ) from failed.problem
    if logits.shape[-1] < data.classes:
        raise BadInput(f"{kind} returns {logits.shape[-1]} logits, and {data.name} has {data.classes} classes")


def _loggers(state: Path, config: TrainConfig, step: int) -> Iterator[Logger]:
    # What begins anew at a step takes the place of what was logged from there on before.
    since = f"from_step_{step}"
    yield CSVLogger(state, name=LOGS, version=since, flush_logs_every_n_steps=config.log_every)
    if config.tensorboard:
        yield TensorBoardLogger(str(state), name=LOGS, version=since)


def _callbacks(checkpoint: Path, config: TrainConfig, *, show: bool) -> Iterator[pl.Callback]:
    yield SeededSteps(config.seed)
    if config.accumulate > 1:
        yield SharedSyntheses()
    if config.ema:
        yield EMAWeightAveraging(decay=config.ema)
    yield Speed(config.log_every)
    yield Checkpoints(checkpoint, config.save_every)
    if show:
        yield RichProgressBar(leave=True)


def _step_of(checkpoint: Path) -> int:
    try:
        found = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        return int(found["global_step"])
    except Exception as problem:
        raise BadInput(f"the checkpoint {checkpoint} cannot be read: {first_line(problem)}") from problem


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what Lightning says of itself."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_\w+|torchmetrics)(\.|$)")
            warnings.filterwarnings("ignore", message="Experiment logs directory")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Give Ctrl-C on to the caller: Lightning ends the process on it, and ignores the next ones."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as ended:
        if isinstance(ended.__context__, KeyboardInterrupt):
            signal.signal(signal.SIGINT, before)
            raise KeyboardInterrupt from ended
        raise

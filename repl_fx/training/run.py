"""A training run: from a model and data to trained weights, in a directory from which it can be resumed.

`DIR/train_state` has

- `config.yaml`: the settings;
- `data.sha256`: a hash of the data;
- `last.ckpt`: weights, optimizer, schedule, place in the data;
- `logs/from_step_N/metrics.csv`: the log, from the step on at which the run began or went on;
- `result.json`: the figures of the last evaluation;
- `others/VARIANT-seed-N`: the same of each other run of a comparison, and `comparison.json`, what came out.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import nn

from repl_fx.artifact.places import KEPT, LOGS as LOGS, RESULT as RESULT, STATE as STATE
from repl_fx.display.html import Displayed
from repl_fx.environment.files import writing
from repl_fx.errors import BadInput, OutputError, not_ours
from repl_fx.graph.state import parameter_count
from repl_fx.running.hushed import hushed
from repl_fx.running.untouched import in_mode
from repl_fx.training.callbacks import SharedSyntheses, Speed, ToldSteps, peak_mib
from repl_fx.training.compiling import compile_
from repl_fx.training.data.content import content_of, require_content
from repl_fx.training.data.data_set import Data, UserData
from repl_fx.training.data.targets import has_targets
from repl_fx.training.data.user_code import lost_worker
from repl_fx.training.distributed import (
    device_of,
    facts,
    fingerprint,
    require_possible,
    trainer_settings,
    unused_parameters,
)
from repl_fx.training.loading import DataModule
from repl_fx.training.module import Training, module_of
from repl_fx.training.phases import Phase
from repl_fx.training.processes import ALONE, Processes, join, lost_peer
from repl_fx.training.safe_checkpoints import FINGERPRINT, Checkpoints, SeededSteps, discard_all, header_of, last_whole
from repl_fx.training.sharding import FullySharded, Sharding
from repl_fx.training.train_config import TrainConfig, read_config, require_said

CONFIG, CHECKPOINT, DATA = "config.yaml", "last.ckpt", "data.sha256"
# What Lightning and its metrics say of themselves.
NOISY = ("pytorch_lightning", r"lightning_\w+", "torchmetrics")
NOISY_LOGGERS = ("pytorch_lightning", "lightning.pytorch", "lightning.fabric")
# Of a Trainer: steps are told and checkpoints are written here.
BARE: Mapping[str, Any] = dict.fromkeys(
    ("enable_progress_bar", "enable_checkpointing", "enable_model_summary", "use_distributed_sampler"), False
)
PRECISIONS: Mapping[str, Any] = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}


@dataclass(frozen=True, repr=False)
class TrainingResult(Displayed):
    """The result of a run.

    Attributes:
        figures: those of the last evaluation, by name.
        steps: of the optimizer, in all.
        parameters: of the model.
        resumed: the step at which the run went on; None where it began anew.
        inputs_per_second: in training, the median of the epochs; None where a run that was at its end went on.
        memory_mib: most memory of tensors on a GPU; None on a CPU.
        model: the trained model; None where the result was read from a file.
    """

    figures: dict[str, float]
    steps: int
    parameters: int
    resumed: int | None = None
    inputs_per_second: float | None = None
    memory_mib: float | None = None
    model: nn.Module | None = field(default=None, compare=False)

    @property
    def figures_lines(self) -> list[str]:
        """A line for each figure."""
        return [f"{name}: {value:.4f}" for name, value in self.figures.items()]

    def __str__(self) -> str:
        speed = "" if self.inputs_per_second is None else f", {self.inputs_per_second:.3g} inputs a second"
        return "\n".join([*self.figures_lines, f"{self.parameters:,} parameters, {self.steps} steps{speed}"])

    def write(self, file: Path) -> None:
        """Write all but the model."""
        known = {name: value for name, value in vars(self).items() if name != "model"}
        file.write_text(json.dumps(known, indent=2) + "\n")


def train_once(
    model: nn.Module,
    data: Data | UserData,
    config: TrainConfig,
    directory: Path,
    *,
    folder: str = "",
    resume: bool = False,
    kept: bool = True,
    teacher: nn.Module | None = None,
    phase: Phase | None = None,
) -> TrainingResult:
    """Train a model in one go, which has its trained weights behind the call.

    Args:
        model: in place or a graph; takes the inputs of a batch.
        data: see `repl_fx.training.data`.
        config: the settings; those of the run before where it goes on.
        directory: of the run; its state goes into `train_state`.
        folder: below `train_state`, of a run that is not the directory's own.
        resume: whether to go on from the last checkpoint.
        kept: whether the directory stays, so that a run that was stopped can go on.
        teacher: the original model, to learn from.
        phase: of a run that has several, see `repl_fx.training.schedules`.

    Raises:
        BadInput: data and model do not fit, a loss that is no number, or nothing to go on from.
        OutputError: the directory cannot be written.
    """
    state = directory / STATE / folder
    accelerator, processes = joined(config, resume=resume)
    before, resumed = _before(directory, state, None if phase else model, data, config) if resume else (None, None)
    sharding, speed = Sharding(model, config, processes), Speed(config.log_every)
    place = state / CHECKPOINT if kept or phase else None
    checkpoints = Checkpoints(place, config.save_every, config.log_every, fingerprint(model))
    callbacks = [*_callbacks(checkpoints, config, processes, phase, sharded=sharding.wanted), speed]
    going_on = _saying_how_to_go_on(state / CHECKPOINT) if kept else nullcontext()
    with hushed(NOISY, NOISY_LOGGERS, ("Experiment logs directory",)), going_on, _interruptible():
        options = _trainer_options(state, config, phase.until if phase else config.epochs, resumed)
        options |= trainer_settings(config, processes)
        trainer = pl.Trainer(accelerator=accelerator, callbacks=callbacks, **options)
        batches = DataModule(data, config, device_of(processes, accelerator), trainer, processes)
        in_epoch = -(-len(batches.train) // config.accumulate)
        steps = config.steps or config.epochs * in_epoch
        module = module_of(sharding.model, data, config, steps, sharding.to_try(batches.first()), teacher)
        batches.serve(module)
        processes.agree(facts(model, data, config, resumed))
        if not resume and processes.first:
            begin_state(state, config, data)
        if phase is not None:
            phase.begin(before, module, model)
        if config.compile:
            compile_(sharding.model)
        sharding.begin(module)
        # Lightning trains each module in the mode it has, and a model that was loaded is in evaluation mode.
        module.train()
        with _refusing(state):
            figures = _fit(trainer, module, batches, before, within_epoch=steps % in_epoch != 0)
            sharding.end()
            memory = peak_mib(module.device) if accelerator == "gpu" else None
            trained = TrainingResult(figures, steps, parameter_count(model), resumed, speed.rate, memory, model)
            if processes.first:
                trained.write(state / RESULT)
    return trained


def joined(config: TrainConfig, *, resume: bool, stdout: int | None = None) -> tuple[str, Processes]:
    """The accelerator, and the processes of a run, which are together now and can do what the settings say.

    Args:
        config, resume, stdout: see `join`.

    Raises:
        BadInput: the device or a library is not here, or the settings are none for several processes.
        Ended: see `join`.
    """
    accelerator = require_available(config)
    processes = join(config, resume=resume, stdout=stdout)
    require_possible(config, processes)
    return accelerator, processes


def _fit(
    trainer: pl.Trainer, module: pl.LightningModule, batches: DataModule, before: Path | None, *, within_epoch: bool
) -> dict[str, float]:
    """Train to the end; returns the figures of an evaluation there.

    Args:
        before: the checkpoint to go on from.
        within_epoch: whether the end is behind the last evaluation.
    """
    trainer.fit(module, datamodule=batches, ckpt_path=before, weights_only=True)
    if within_epoch or not figures_of(trainer):
        # Or the run was at its end already.
        trainer.validate(module, verbose=False, datamodule=batches)
    return figures_of(trainer)


def evaluate(
    model: nn.Module, data: Data | UserData, config: TrainConfig, teacher: nn.Module | None = None
) -> dict[str, float]:
    """The figures of a model on the data that are held out, by name, without training.

    The model and the teacher are as before, but on the device of the settings.

    Args:
        model: takes the inputs of a batch.
        data: see `repl_fx.training.data`.
        config: the settings.
        teacher: the original model, by which a model is judged where the data have no targets.

    Raises:
        BadInput: data and model do not fit, or the device is not here.
    """
    accelerator = require_available(config)
    modes = in_mode(model, False), nullcontext() if teacher is None else in_mode(teacher, False)
    with hushed(NOISY, NOISY_LOGGERS), modes[0], modes[1]:
        precision = PRECISIONS[config.precision]
        trainer = pl.Trainer(accelerator=accelerator, devices=1, precision=precision, logger=False, **BARE)
        # Nothing is learned, and any model has its figures, with surrogates in place or without.
        config = config.changed(teacher_values=0.0, teacher_logits=1.0)
        batches = DataModule(data, config, device_of(ALONE, accelerator), trainer)
        first = batches.first()
        module = module_of(model, data, config, 1, first, None if has_targets(first[1]) else teacher)
        batches.serve(module)
        trainer.validate(module, verbose=False, datamodule=batches)
        return figures_of(trainer)


def _trainer_options(state: Path, config: TrainConfig, epochs: int, resumed: int | None) -> dict[str, Any]:
    """The arguments of a Trainer that follow from the settings of a run, and from the step at which it goes on.

    Args:
        epochs: at the end of the run, or of a phase of it, where it does not end by its steps.
    """
    return {
        "default_root_dir": state,
        "max_epochs": -1 if config.steps else epochs,
        "max_steps": config.steps or -1,
        "precision": PRECISIONS[config.precision],
        "accumulate_grad_batches": config.accumulate,
        "gradient_clip_val": config.clip or None,
        "log_every_n_steps": config.log_every,
        "logger": list(_loggers(state, config, resumed or 0)),
        "deterministic": config.deterministic,
        "num_sanity_val_steps": 0,
        **BARE,
    }


@contextmanager
def _refusing(state: Path) -> Iterator[None]:
    """Turn errors of Lightning, of loaders and of files into the line for them."""
    try:
        yield
    except RuntimeError as problem:
        refused = unused_parameters(problem) or lost_worker(problem) or lost_peer(problem)
        if refused is None:
            raise
        raise refused from problem
    except OSError as problem:
        if not_ours(problem) is not None:
            raise
        raise OutputError(f"{state} cannot be written: {problem.strerror or problem}") from problem


def finished(directory: Path, folder: str) -> TrainingResult | None:
    """The result of a run that is at its end; None where it is not, or its result cannot be read."""
    try:
        return TrainingResult(**json.loads((directory / STATE / folder / RESULT).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def figures_of(trainer: pl.Trainer) -> dict[str, float]:
    """The figures of the last evaluation; all that was logged, where the module is the user's."""
    found = trainer.callback_metrics.items()
    own = not isinstance(trainer.lightning_module, Training)
    return {name.removeprefix("test_"): float(value) for name, value in found if own or name.startswith("test_")}


def settings_of(directory: Path) -> TrainConfig:
    """The settings of the run in a directory."""
    file = directory / STATE / CONFIG
    config = read_config(file, TrainConfig())
    require_said(file)
    return config


def begin_state(state: Path, config: TrainConfig, data: Data | UserData) -> None:
    """Make the directory of a new run; of one before nothing stays.

    Raises:
        BadInput: data that cannot be read.
        OutputError: the directory cannot be written.
    """
    with writing(state):
        state.mkdir(parents=True, exist_ok=True)
        discard_all(state / CHECKPOINT)
        for name in (RESULT, KEPT):
            (state / name).unlink(missing_ok=True)
        shutil.rmtree(state / LOGS, ignore_errors=True)
        (state / CONFIG).write_text(config.to_yaml())
        (state / DATA).write_text(content_of(data))


def require_same_data(state: Path, data: Data | UserData) -> None:
    """Refuse to go on with other data than those that a run began with.

    Raises:
        BadInput: they are others; names them.
    """
    file = state / DATA
    require_content(data, file.read_text() if file.is_file() else "", f"the run in {state}")


def require_available(config: TrainConfig) -> str:
    """The accelerator of Lightning for the device of the settings.

    Raises:
        BadInput: the device, or a library that the settings need, is not here.
    """
    if config.tensorboard and not any(find_spec(name) for name in ("tensorboard", "tensorboardX")):
        raise BadInput("tensorboard needs the library tensorboardX; pip install 'repl-fx[train]'")
    device, kind = config.device, config.device.partition(":")[0]
    if kind == "auto":
        return "gpu" if torch.cuda.is_available() else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        raise BadInput("there is no CUDA device here; choose another --device")
    if kind not in ("cpu", "cuda"):
        raise BadInput(f"{device} is no device to train on; give cpu, cuda or auto")
    return "gpu" if kind == "cuda" else "cpu"


def _loggers(state: Path, config: TrainConfig, step: int) -> Iterator[Logger]:
    # What begins anew at a step takes the place of what was logged from there on before.
    since = f"from_step_{step}"
    yield CSVLogger(state, name=LOGS, version=since, flush_logs_every_n_steps=config.log_every)
    if config.tensorboard:
        yield TensorBoardLogger(str(state), name=LOGS, version=since)


def _callbacks(
    checkpoints: Checkpoints, config: TrainConfig, processes: Processes, phase: Phase | None, *, sharded: bool
) -> Iterator[pl.Callback]:
    if phase is not None:
        yield phase
    yield SeededSteps(config.seed)
    # Gradients that go through a synthesis behind the backward pass would not be those of all processes.
    if config.accumulate > 1 and processes.alone:
        yield SharedSyntheses()
    if config.ema:
        yield EMAWeightAveraging(decay=config.ema)
    if sharded:
        yield FullySharded()
    yield checkpoints
    if processes.first:
        yield ToldSteps(config.log_every)


def _before(
    directory: Path, state: Path, model: nn.Module | None, data: Data | UserData, config: TrainConfig
) -> tuple[Path, int]:
    """The checkpoint to go on from, and its step; of the same model, data and strategy.

    Args:
        model: that it has to be of; None for one of several phases, which know their own.
    """
    checkpoint = last_whole(state / CHECKPOINT)
    if checkpoint is None:
        raise BadInput(f"{directory} has no {STATE}/{CHECKPOINT} to go on from; train it without --resume")
    header = header_of(checkpoint)
    # One of before there were any has no fingerprint.
    if model is not None and header.get(FINGERPRINT) not in (None, fingerprint(model)):
        raise BadInput(
            f"the checkpoint {checkpoint} is of another model or plan than {directory} has; train anew with --force"
        )
    if checkpoint.is_dir() != (config.strategy == "fsdp2"):
        raise BadInput(
            f"the checkpoint {checkpoint} is not one of strategy {config.strategy}; go on with the one it is of"
        )
    require_same_data(state, data)
    return checkpoint, int(header["global_step"])


@contextmanager
def _saying_how_to_go_on(place: Path) -> Iterator[None]:
    """Note on any error which checkpoint there is to go on from."""
    try:
        yield
    except BaseException as problem:
        if (last := last_whole(place)) is not None:
            problem.add_note(f"go on with --resume, from {last}")
        raise


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

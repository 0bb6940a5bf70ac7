"""The figures of a model on data, without training."""

from __future__ import annotations

from contextlib import nullcontext

import pytorch_lightning as pl
from torch import nn

from repl_fx.running.hushed import hushed
from repl_fx.running.untouched import in_mode
from repl_fx.training.building import module_of
from repl_fx.training.data.data_set import Data, UserData
from repl_fx.training.data.targets import has_targets
from repl_fx.training.distributed import device_of
from repl_fx.training.loading import DataModule
from repl_fx.training.module import Training
from repl_fx.training.processes import ALONE
from repl_fx.training.run import BARE, NOISY, NOISY_LOGGERS, PRECISIONS, figures_of, require_available
from repl_fx.training.train_config import TrainConfig


def evaluate(
    model: nn.Module, data: Data | UserData, config: TrainConfig, teacher: nn.Module | None = None
) -> dict[str, float]:
    """The figures of a model on the data that are held out, by name.

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
        trainer = pl.Trainer(
            accelerator=accelerator,
            devices=1,
            precision=PRECISIONS[config.precision],
            logger=False,
            **BARE,
        )
        # Nothing is learned, and any model has its figures, with surrogates in place or without.
        config = config.changed(teacher_values=0.0, teacher_logits=1.0)
        batches = DataModule(data, config, device_of(ALONE, accelerator), trainer)
        first = batches.first()
        module = module_of(model, data, config, 1, first, None if has_targets(first[1]) else teacher)
        if isinstance(module, Training):
            batches.check_targets(module.task)
        trainer.validate(module, verbose=False, datamodule=batches)
        return figures_of(trainer)

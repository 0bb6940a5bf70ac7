"""Scores on a data set: calibration batches as in training, but neither changed at random nor left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from repl_fx.arguments import in_words
from repl_fx.errors import BadInput
from repl_fx.finding.blocks import Repeat
from repl_fx.planning.scoring.score_blocks import score_blocks
from repl_fx.planning.scoring.scores import KINDS, Kind, Scores
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.untouched import device_of
from repl_fx.tracing.parts.capture_parts import CapturedParts
from repl_fx.training.data.data_set import Data, Tensors, UserData, length, rows_of
from repl_fx.training.data.loaders import BatchLoader
from repl_fx.training.data.samples import KeptSamples
from repl_fx.training.data.targets import has_targets
from repl_fx.training.loading import batch_of, loaders
from repl_fx.training.module import Training, module_of
from repl_fx.training.train_config import TrainConfig

# Inputs in a batch: few enough that the values at all boundaries of a large model fit.
_BATCH = 32


# Returns pairs of a model's arguments and targets, the same each time.
Batches = Callable[[], Iterator[tuple[Any, Any]]]
Loss = Callable[[Any, Any], Tensor]


def calibration(
    model: nn.Module, data: Data | UserData, config: TrainConfig, samples: int, *, with_loss: bool
) -> tuple[Batches, Loss | None]:
    """Samples of the training data, drawn by the seed of the settings, and the task's loss for outputs and targets.

    Args:
        model: that is scored or fitted.
        data: see `read_data`.
        config: the settings.
        samples: how many, at most.
        with_loss: whether the loss is needed, which is None otherwise; then the model has to fit the targets.

    Raises:
        BadInput: data that are no loaders, or that have no loss.
    """
    require_loaders(data)
    full = batch_of(data, config) if config.full_batches else 0
    samples = max(samples, full)
    size = min(full or _BATCH, samples, length(data.train)) if isinstance(data, Data) else config.batch_size
    config = config.changed(batch_size=size, augment=False, mixup=0.0, cutmix=0.0)
    device = device_of(model)
    if isinstance(data, Data) and not isinstance(data.train, Tensors):
        data = replace(data, train=KeptSamples(data.train))

    def batches() -> Iterator[tuple[Any, Any]]:
        left, loader = samples, loaders(data, config, device)[0]
        if isinstance(loader, BatchLoader):
            loader.drop_last = False
        for batch, targets in loader:
            if left <= 0:
                return
            some, wanted = rows_of((batch, targets), slice(left))
            given = some if isinstance(some, Mapping | tuple) else (some,)
            # A list is of pictures.
            found = len(some) if isinstance(some, list) else ExampleInputs.of_batch(some).batch
            left -= found
            if full and found != full:
                continue
            yield given, wanted

    return batches, _loss(model, data, config, device) if with_loss else None


def require_loaders(data: Data | UserData) -> None:
    """Refuse data that are not read without a Trainer.

    Raises:
        BadInput: they are a LightningDataModule.
    """
    if isinstance(data, UserData) and data.module is not None:
        raise BadInput(
            f"{data.name} returns {in_words(data.module)}; return a pair of DataLoaders (train, test) instead"
        )


def score_on_data(
    captured: CapturedParts,
    data: Data | UserData,
    config: TrainConfig,
    kind: Kind,
    *,
    samples: int,
    greedy: int = 0,
    repeats: Sequence[Repeat] | None = None,
) -> Scores:
    """Score the blocks of a model on samples of a data set.

    Args:
        captured: the model.
        data: see `read_data`.
        config: the settings.
        kind: of the score that is wanted besides influence and change.
        samples, greedy, repeats: see `calibration` and `score_blocks`.

    Raises:
        BadInput: see `calibration` and `score_blocks`.
    """
    with_loss = kind in ("gradient", "loss")
    batches, loss = calibration(captured.source, data, config, samples, with_loss=with_loss)
    kinds = tuple(one for one in KINDS if one in ("influence", "change", kind))
    # Without a loss the targets of a pair are left out.
    scored = batches if with_loss else lambda: (given for given, _ in batches())
    return score_blocks(captured, scored, loss=loss, kinds=kinds, greedy=greedy, repeats=repeats)


def _loss(model: nn.Module, data: Data | UserData, config: TrainConfig, device: torch.device) -> Loss:
    """The loss of the task of the data."""
    first = next(iter(loaders(data, config, device)[1]))
    if not has_targets(first[1]):
        raise BadInput(f"{data.name} has no targets, and so no loss; score by influence or change")
    module = module_of(model, data, config, 1, first)
    if not isinstance(module, Training):
        raise BadInput(f"--task {config.task} is a module with a loss of its own; score by influence or change")
    task = module.task
    if task.key == "detection":
        raise BadInput("detection models give their losses in training alone; score by influence or change")
    return lambda outputs, targets: task.loss(outputs, (None, targets))

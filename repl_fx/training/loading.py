"""Loaders for a run: which changes training inputs go through, by the settings and the kind of data."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from repl_fx.training.config import TrainConfig
from repl_fx.training.data.augmentation import Chain, Change, CropAndFlip, CutMix, Mixup, Normalise
from repl_fx.training.data.kinds import Data
from repl_fx.training.data.loaders import BatchLoader, loader_of


def training_loader(data: Data, config: TrainConfig, device: torch.device) -> BatchLoader:
    """Batches in an order that is new in each epoch, changed at random; what does not fill a batch is left out."""
    return _loader(data, config, device, training=True)


def test_loader(data: Data, config: TrainConfig, device: torch.device) -> BatchLoader:
    """All that is held out, always in one order and as it is."""
    return _loader(data, config, device, training=False)


def _loader(data: Data, config: TrainConfig, device: torch.device, *, training: bool) -> BatchLoader:
    split = data.train if training else data.test
    change = Chain(tuple(_changes(data, config, training=training)))
    # Tests want no gradients kept, and take twice the batch.
    size = config.batch_size if training else 2 * config.batch_size
    return loader_of(split, size, seed=config.seed, shuffle=training, drop_last=training, device=device, change=change)


def _changes(data: Data, config: TrainConfig, *, training: bool) -> Iterator[Change]:
    if data.task != "classification":
        return
    pictures = len(data.shape) == 3
    if training and config.augment and pictures:
        # What is grey, such as digits, is something else in a mirror.
        yield CropAndFlip(max(1, data.shape[1] // 8), flip=data.shape[0] == 3)
    if training and config.cutmix and pictures:
        yield CutMix(data.classes, config.cutmix)
    yield Normalise(data.mean, data.std)
    if training and config.mixup:
        yield Mixup(data.classes, config.mixup)

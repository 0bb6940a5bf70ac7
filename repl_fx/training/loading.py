"""Loaders for a run: which changes training inputs go through, by the settings and the kind of data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from msgspec import structs

from repl_fx.display.numbers import several
from repl_fx.errors import BadInput
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.sources import Purpose, tokenizer_of
from repl_fx.tracing.parts.origin import Preprocessing
from repl_fx.training.data.augmentation import Change, CropAndFlip, CutMix, Mixup, Normalise
from repl_fx.training.data.data_set import Data, Split, Tensors, UserData, rows_of
from repl_fx.training.data.loaders import WORKERS, BatchLoader, PositionedLoader
from repl_fx.training.data.masks import MaskedPictures
from repl_fx.training.data.pictures import Pictures
from repl_fx.training.data.samples import KeptSamples, samples_of
from repl_fx.training.data.sets import load_data
from repl_fx.training.data.user_code import reading
from repl_fx.training.data.user_loaders import UserLoader, loaders_of
from repl_fx.training.module import Training
from repl_fx.training.processes import ALONE, Processes
from repl_fx.training.train_config import TrainConfig, names_python_file

# Tasks whose batches are changed on their device; pictures of detection are, one by one, where they are read.
_CHANGED = ("classification", "segmentation")


class DataModule(pl.LightningDataModule):
    """The batches of a run; with what a user's LightningDataModule does to them on their way to the device.

    Attributes:
        train, test: loaders with a position.
    """

    def __init__(
        self,
        data: Data | UserData,
        config: TrainConfig,
        device: torch.device,
        trainer: pl.Trainer,
        processes: Processes = ALONE,
    ) -> None:
        super().__init__()
        self.train, self.test = loaders(data, config, device, processes)
        own: Any = data.module if isinstance(data, UserData) else None
        if own is not None:
            # Its hooks may ask whether the trainer is training.
            own.trainer = trainer
            for hook in ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"):
                setattr(self, hook, getattr(own, hook))

    def train_dataloader(self) -> PositionedLoader:
        """Training batches."""
        return self.train

    def val_dataloader(self) -> PositionedLoader:
        """Held-out batches."""
        return self.test

    def first(self) -> Any:
        """The first held-out batch, as a model gets it, but for its device."""
        return self.on_after_batch_transfer(self.on_before_batch_transfer(next(iter(self.test)), 0), 0)

    def serve(self, module: pl.LightningModule) -> None:
        """Tell a module which held-out batches count, and refuse targets of a user's loaders that its task cannot take.

        A data set is checked when it is read; a LightningModule of the user's takes what it gets.
        """
        if not isinstance(module, Training):
            return
        module.counts = self.test.counts
        for loader in (self.train, self.test):
            if isinstance(loader, UserLoader):
                loader.check = module.task.require_targets


def read_data(config: TrainConfig, spec: str = "", *, trust_remote_code: bool = False) -> Data | UserData:
    """The data of the settings; of a user's loaders one batch each is read, to refuse them before much is done.

    Args:
        spec: of the model, whose tokenizer reads text.
        trust_remote_code: let the code of a tokenizer run.

    Raises:
        BadInput: see `load_data` and `loaders`.
    """
    reads_text = config.data.startswith(("text:", "hf:"))
    data = load_data(
        config.data,
        root=None if config.data_dir is None else Path(config.data_dir),
        download=config.download,
        context=config.context,
        size=config.size,
        normalise=config.scale,
        tokenizer=tokenizer_of(spec, trust_remote_code=trust_remote_code) if reads_text else None,
    )
    # What a LightningDataModule prepares and sets up is done once, in the run.
    if isinstance(data, UserData) and data.module is None:
        for loader in loaders(data, config, torch.device("cpu")):
            next(iter(loader))
    return data


def batch_of(data: Data | UserData, config: TrainConfig) -> int:
    """Inputs in a training batch: those of the settings, or of a user's loader; 0 where that is not known."""
    if isinstance(data, Data):
        return config.batch_size
    if data.module is not None:
        return 0
    batch = next(iter(loaders(data, config, torch.device("cpu"))[0]))
    found = ExampleInputs.of(batch[:1]) if isinstance(batch, tuple | list) else ExampleInputs.of((batch,))
    return found.batch if found.tensors else 0


def prepared(data: Data | UserData, preprocessing: Preprocessing | None, config: TrainConfig) -> Data | UserData:
    """The data as the weights of a model want them, where the settings say nothing of sizes and channels.

    Pictures in files get the size that evaluation by the model's library gives them, but for those with masks; all, and
    bytes in memory, its mean and deviation. Floats, and what a user's own code returns, pass as they are.

    Args:
        data: as they were read.
        preprocessing: that the weights come with; None where they come with none.
    """
    if preprocessing is None or not isinstance(data, Data) or names_python_file(config.data):
        return data
    known: Any = {}
    if config.scale is None:
        known = {"mean": preprocessing.mean, "std": preprocessing.std, "prepared": preprocessing.by}
    if isinstance(data.train, Pictures) and isinstance(data.test, Pictures) and config.size is None:
        train, test = (replace(split, preprocessing=preprocessing) for split in (data.train, data.test))
        with reading(data.name):
            shape = tuple(train[0][0].shape)
        said = [f"pictures of {data.name}: {preprocessing} (as {preprocessing.by} wants)"] if str(preprocessing) else []
        return replace(data, train=train, test=test, shape=shape, changes=(*data.changes, *said), **known)
    fits = len(data.shape) == 3 and len(preprocessing.mean) in (0, data.shape[0])
    return replace(data, **known) if _are_pixels(data) and fits else data


def _are_pixels(data: Data) -> bool:
    """Tell whether inputs are grey levels from 0 to 255, in files or in memory."""
    return isinstance(data.train, Pictures | MaskedPictures) or (
        isinstance(data.train, Tensors) and data.train.main.dtype == torch.uint8
    )


def kept_preprocessing(
    preprocessing: Preprocessing | None, data: Data | UserData, config: TrainConfig
) -> Preprocessing | None:
    """The preprocessing that an artifact keeps of its run: that of its weights, but for what settings or data said.

    Args:
        preprocessing: that the weights come with.
        data: as they were prepared.
    """
    if not isinstance(data, Data) or names_python_file(config.data) or not _are_pixels(data):
        return preprocessing
    kept = preprocessing or Preprocessing("its training")
    if not data.prepared:
        kept = structs.replace(kept, mean=data.mean, std=data.std)
    if config.size is not None and isinstance(data.train, Pictures) and (sizes := data.train.preprocessing):
        kept = structs.replace(sizes, by=kept.by, mean=kept.mean, std=kept.std)
    return None if kept == Preprocessing("its training") else kept


def purpose_of(data: Data | UserData, config: TrainConfig, *, trained: bool = False) -> Purpose | None:
    """The data as that which a model is built for; None where a user's loaders do not say what they are.

    Args:
        trained: the model is as it is, and gets neither another size nor another number of classes.
    """
    if isinstance(data, UserData):
        if config.has_own_module or data.module is not None:
            return None if config.task is None or config.has_own_module else Purpose(config.task)
        batch = next(iter(loaders(data, config, torch.device("cpu"))[0]))[0]
        inputs = _first_two(batch)
        shape = tuple(inputs.tensors[0].shape[1:]) if inputs.tensors and inputs.tensors[0].ndim == 2 else ()
        return Purpose(config.task or "", shape=shape, inputs=inputs)
    given = _first_two(data.train.inputs) if isinstance(data.train, Tensors) else None
    if trained:
        # One number: the shape tells texts from pictures, and their length is the model's.
        return Purpose(data.task, shape=data.shape[:1] if len(data.shape) == 1 else (), inputs=given)
    # Pictures in files may be of any size.
    one_size = config.size is not None or isinstance(data.train, Tensors)
    return Purpose(data.task, data.classes if data.has_targets else 0, data.shape if one_size else (), given)


def _first_two(batch: Any) -> ExampleInputs:
    return ExampleInputs.of_batch(rows_of(batch, slice(2)))


def changes_of(data: Data | UserData, config: TrainConfig, *, training: bool = True) -> tuple[str, ...]:
    """One line for each change that inputs go through on their way from the files to the model.

    Args:
        training: whether they are trained on, too.
    """
    if isinstance(data, UserData):
        return data.changes
    lines = list(data.changes)
    with reading(data.name):
        first = data.train.main if isinstance(data.train, Tensors) else data.train[0][0]
    if first.dtype == torch.uint8:
        lines.append(f"pixels of {data.name}: uint8 -> float32, divided by 255")
    if data.mean and data.task in _CHANGED:
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (data.mean, data.std))
        asked = f"--normalise {config.normalise or 'data'}" if config.mean is None else "--mean, --std"
        why = f"as {data.prepared} wants" if data.prepared else asked
        lines.append(f"channels of {data.name}: less their mean ({mean}), divided by their deviation ({std}) ({why})")
    if training:
        lines += _training_changes(data, config)
    return tuple(lines)


def _training_changes(data: Data, config: TrainConfig) -> Iterator[str]:
    where = f"training inputs of {data.name}"
    if _augments(data, config):
        first = next(_changes(data, config, training=True), None)
        shifted = first if isinstance(first, CropAndFlip) else None
        ways = [] if shifted is None else [f"shifted by up to {several(shifted.padding, 'pixel')}"]
        ways += ["every other one mirrored"] if shifted is None or shifted.flip else []
        yield f"{where}: {', '.join(ways)} (--augment)"
    for name in ("mixup", "cutmix"):
        if getattr(config, name):
            yield f"{where}: mixed, with their targets (--{name} {getattr(config, name)})"


def _augments(data: Data, config: TrainConfig) -> bool:
    """Tell whether training pictures are augmented; what is no picture never is."""
    wanted = data.augment if config.augment is None else config.augment
    return wanted and (data.task == "detection" or (len(data.shape) == 3 and data.task in _CHANGED))


def loaders(
    data: Data | UserData, config: TrainConfig, device: torch.device, processes: Processes = ALONE
) -> tuple[PositionedLoader, PositionedLoader]:
    """Batches to train on, and all that is held out.

    Of a data set, training batches come in an order that is new in each epoch, and changed at random, and a last one
    that is not full is left out; what is held out comes in one order and as it is. A user's loaders are his own.

    Raises:
        BadInput: the data cannot make batches, or not of this size.
    """
    _require_mixtures(data, config)
    shared: Any = {"seed": config.seed, "device": device, "rank": processes.rank, "world_size": processes.size}
    if isinstance(data, UserData):
        train, test = loaders_of(data, config.seed)
        # A LightningModule of the user takes any batch.
        shared["pairs"] = not config.has_own_module
        return UserLoader(train, data.name, **shared), UserLoader(test, data.name, training=False, **shared)

    def loader(split: Split, name: str, *, training: bool) -> BatchLoader:
        samples = samples_of(data, split, name, flip=training and _augments(data, config))
        changes = tuple(_changes(data, config, training=training))
        whole = training or config.full_batches
        # Tests want no gradients kept, and take twice the batch.
        size = config.batch_size if whole else 2 * config.batch_size
        workers = 0 if isinstance(split, KeptSamples) else WORKERS
        return BatchLoader(samples, size, shuffle=training, drop_last=whole, changes=changes, workers=workers, **shared)

    return loader(data.train, "train", training=True), loader(data.test, "test", training=False)


def _require_mixtures(data: Data | UserData, config: TrainConfig) -> None:
    for name in ("mixup", "cutmix"):
        if not getattr(config, name):
            continue
        if isinstance(data, UserData):
            raise BadInput(
                f"--{name} changes data sets, and {data.name} gives batches; mix in its loader, or leave it out"
            )
        if not data.has_targets:
            raise BadInput(f"--{name} mixes targets too, and {data.name} has none; leave it out")
        if data.task != "classification":
            raise BadInput(f"--{name} is for classification, and {data.name} is data for {data.task}; leave it out")
        if _is_text(data):
            raise BadInput(f"--{name} mixes numbers, and inputs of {data.name} are tokens; leave it out")
        if name == "cutmix" and len(data.shape) != 3:
            raise BadInput(
                f"--cutmix is for pictures, and inputs of {data.name} are of shape {data.shape}; leave it out"
            )


def _is_text(data: Data) -> bool:
    """Tell whether inputs are tokens, of which no other ones are made."""
    return isinstance(data.train, Tensors) and isinstance(data.train.inputs, Mapping)


def _changes(data: Data, config: TrainConfig, *, training: bool) -> Iterator[Change]:
    if data.task not in _CHANGED or _is_text(data):
        return
    if training and _augments(data, config):
        # What is grey, such as digits, is something else in a mirror.
        yield CropAndFlip(max(1, data.shape[1] // 8), flip=data.shape[0] == 3)
    if training and config.cutmix:
        yield CutMix(data.classes, config.cutmix)
    yield Normalise(data.mean, data.std)
    if training and config.mixup:
        yield Mixup(data.classes, config.mixup)

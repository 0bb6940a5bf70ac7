"""Batches of a user's own loader, in a run that can be resumed, and his LightningDataModule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from repl_fx._torch import without_workers
from repl_fx.arguments import in_words
from repl_fx.errors import BadInput
from repl_fx.running.untouched import seed_everything
from repl_fx.training.data.data_set import UserData
from repl_fx.training.data.loaders import PositionedLoader, seed_of
from repl_fx.training.data.targets import NO_TOKEN, has_targets, no_targets
from repl_fx.training.data.user_code import next_batch, reading, with_length

CPU = torch.device("cpu")


class UserLoader(PositionedLoader):
    """A loader of a user, whose batches a seed fixes.

    Attributes:
        check: refuses a batch with targets that cannot be, by the name of the data; None for any batch.

    The global random state is seeded before each batch is asked for, by the seed, the epoch and the number of the
    batch: shuffling, worker processes and transforms draw the same in any run. A run that goes on in the middle of an
    epoch reads the batches before once more, and drops them.

    Args:
        loader: an iterable with a length, such as a DataLoader.
        name: of the data, for messages.
        seed: 0 or more.
        pairs: whether a batch has to be a pair of inputs and targets; of inputs alone, the targets are `no_targets`.
        training: whether the batches make steps, to which each process has to add as many samples.
        device: that batches may be changed on.
        rank, world_size: number of this process, and of all; each one gets its part of every batch.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        name: str,
        *,
        seed: int,
        pairs: bool = True,
        training: bool = True,
        device: torch.device = CPU,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not isinstance(loader, Sized):
            raise BadInput(f"{name}: {in_words(loader)} has no length; give a loader with len(), such as a DataLoader")
        super().__init__()
        self.loader, self.name, self.seed, self.pairs, self.training = loader, name, seed, pairs, training
        self.device, self.rank, self.world_size = device, rank, world_size
        self.check: Callable[[Any, str], None] | None = None
        if len(self) == 0:
            raise BadInput(f"{name}: a loader has no batches; give at least one")

    def __len__(self) -> int:
        """Batches of an epoch."""
        assert isinstance(self.loader, Sized)
        with reading(self.name):
            return len(self.loader)

    def _batches(self, epoch: int, first: int) -> Iterator[Any]:
        if isinstance(self.loader, DataLoader):
            # Workers that live on would draw on from the epoch before, which a resumed run has not seen.
            without_workers(self.loader)
        seed_everything(seed_of(self.seed, epoch, 0), self.device)
        with reading(self.name):
            found = iter(self.loader)
        for number in range(len(self)):
            seed_everything(seed_of(self.seed, epoch, number + 1), self.device)
            try:
                batch = next_batch(found, f"{self.name}: batch {number}")
            except StopIteration:
                raise BadInput(f"{self.name}: a loader ends after {number} of the {len(self)} batches it has") from None
            if number >= first:
                yield self._own(batch, number)

    def _identity(self) -> dict[str, int]:
        return {"seed": self.seed, "length": len(self)}

    def _own(self, batch: Any, number: int) -> Any:
        where = f"{self.name}: batch {number}"
        batch = self._pair(batch) if self.pairs else batch
        if self.check is not None and has_targets(batch[1]):
            self.check(batch, where)
        if self.world_size == 1:
            return batch
        # The collation of a DataLoader gives a list for a pair.
        return self._part(tuple(batch) if isinstance(batch, list) and len(batch) == 2 else batch, where)

    def _pair(self, batch: Any) -> Any:
        """The inputs and the targets of a batch."""
        if isinstance(batch, tuple | list) and len(batch) == 1:
            (batch,) = batch
        if isinstance(batch, Mapping):
            return labels_apart(batch)
        if isinstance(batch, Tensor):
            return batch, no_targets(batch)
        if not (isinstance(batch, tuple | list) and len(batch) == 2):
            raise BadInput(
                f"{self.name}: a batch is {in_words(batch)}; give pairs (inputs, targets), inputs alone for heal, "
                "or --task file.py:CLASS, a LightningModule that takes them"
            )
        if isinstance(batch[1], tuple | list) and all(isinstance(one, Mapping) for one in batch[1]):
            # Of detection, as `tuple(zip(*samples))` collates them: lists are divided, tuples are not.
            return list(batch[0]), list(batch[1])
        return batch

    def _part(self, batch: Any, where: str) -> Any:
        """This process's part: rows of tensors and of lists of samples, and of each entry of all else."""
        if isinstance(batch, Mapping):
            return {key: self._part(value, where) for key, value in batch.items()}
        if isinstance(batch, tuple):
            return tuple(self._part(value, where) for value in batch)
        if not isinstance(batch, Tensor | list):
            raise BadInput(f"{where} holds {in_words(batch)}, which does not divide; give tensors, or lists of samples")
        samples, world = len(batch), self.world_size
        if samples < world or (self.training and samples % world):
            raise BadInput(
                f"{where} has {samples} samples, which do not divide among {world} processes; give a batch size that "
                "does, and drop_last=True"
            )
        return batch[samples * self.rank // world : samples * (self.rank + 1) // world]


def labels_apart(batch: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """The inputs by name, and the targets, of a batch as collators of transformers make it.

    Labels of the shape of the tokens are those of the tokens themselves; the targets are the next ones.
    """
    inputs = dict(batch)
    found = [inputs.pop(name) for name in ("labels", "label") if name in inputs]
    first = next((value for value in inputs.values() if isinstance(value, Tensor)), None)
    if not found:
        return inputs, no_targets(() if first is None else first)
    (labels,) = found[:1]
    if isinstance(labels, Tensor) and first is not None and labels.ndim == 2 and labels.shape == first.shape:
        labels = F.pad(labels[:, 1:], (0, 1), value=NO_TOKEN)
    return inputs, labels


def loaders_of(data: UserData, seed: int) -> tuple[Iterable[Any], Iterable[Any]]:
    """The training and the held-out loader of a user's data.

    A LightningDataModule is prepared and set up here, once, with the global random state seeded: a split that it draws
    is the same in a run that goes on.

    Raises:
        BadInput: it lacks one of them, or has several.
    """
    if data.module is None:
        assert data.train is not None and data.test is not None
        return data.train, data.test
    own: Any = data.module
    if not isinstance(own, pl.LightningDataModule):
        raise BadInput(f"{data.name} is {in_words(own)}; give a LightningDataModule of the package pytorch_lightning")
    seed_everything(seed)
    with reading(data.name):
        own.prepare_data()
        own.setup("fit")
        found = {"train_dataloader": own.train_dataloader(), "val_dataloader": own.val_dataloader()}
    for name, loader in found.items():
        if loader is None or isinstance(loader, Mapping | list | tuple):
            raise BadInput(f"{data.name}: {name} returns {in_words(loader)}; return one loader")
    train, test = (with_length(loader, f"{data.name}: {name}") for name, loader in found.items())
    return train, test

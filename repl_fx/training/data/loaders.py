"""Batches whose order and changes a seed fixes, so that a run that is resumed sees those it would have seen.

Everything random is drawn from generators seeded by (seed, epoch, number of the batch); nothing is carried over from
one batch to the next, and the global random state is neither read nor moved. A position is then two numbers, the epoch
and the batches given out, and that is the state of a loader (`PositionedLoader`).

torchdata's StatefulDataLoader would keep a position too. 0.11.0, its last release, warns at each construction with
torch 2.15 (`torch.set_vital` is deprecated); it goes on where a state is of another batch size, counting samples, in
place of a refusal; and samples and changes would be seeded here as they are now.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from lightning_fabric.utilities.apply_func import move_data_to_device
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from repl_fx.errors import BadInput, told, users_place
from repl_fx.running.untouched import seed_everything, seeded
from repl_fx.training.data.augmentation import Change
from repl_fx.training.data.data_set import Sample, Split, Tensors, length, rows_of

# Processes that read a data set in files.
WORKERS = 2
# What a generator is for: two purposes never share a stream.
_ORDER, _BATCH, _SAMPLE = range(3)


def seed_of(seed: int, *key: int) -> int:
    """A seed of 64 bits for a purpose, an epoch and further numbers, by numpy's SeedSequence."""
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0])


class PositionedLoader(ABC):
    """An iterable of batches with a position that can be saved: an epoch, and the batches given out.

    An iteration begins where a loaded state says, else with the first batch of the epoch that `set_epoch` named, else
    with the first batch of the epoch after the one of the iteration before. One iteration at a time.

    Lightning saves and restores the state of loaders that have `state_dict` and `load_state_dict`, and tells the epoch
    through `sampler.set_epoch`.
    """

    def __init__(self) -> None:
        self._epoch = self._given = 0
        self._next_epoch = self._next_batch = 0

    @abstractmethod
    def __len__(self) -> int:
        """Batches of an epoch, the same on each rank."""

    def counts(self, number: int) -> bool:
        """Tell whether this rank's part of a batch is its own; all ranks get some, to call the model equally often."""
        return True

    # Lightning asks for it where there is a sampler.
    batch_sampler = None

    @property
    def sampler(self) -> Self:
        """The loader: Lightning looks for `set_epoch` at a loader's sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be of an epoch; a loaded position in that same epoch stays."""
        if epoch != self._next_epoch:
            self._next_epoch, self._next_batch = epoch, 0
        self._epoch, self._given = self._next_epoch, self._next_batch

    def state_dict(self) -> dict[str, int]:
        """The position, and what a loader has to share for its batches to be the same."""
        return {"epoch": self._epoch, "batches": self._given, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration go on from a position; from the last batch of an epoch, with the next epoch.

        Raises:
            BadInput: the state is no position here, or of a loader with other batches; names the first difference.
        """
        for name, own in {**self._identity(), "epoch": None, "batches": None}.items():
            saved = state.get(name)
            if not isinstance(saved, int) or own not in (None, saved):
                wanted = "an integer" if own is None else own
                raise BadInput(f"the saved state of the loader has {name} {saved}, wanted is {wanted}; resume with it")
        epoch, given = state["epoch"], state["batches"]
        if epoch < 0 or not 0 <= given <= len(self):
            raise BadInput(f"the saved state is at batch {given} of epoch {epoch}; an epoch has {len(self)} batches")
        self._epoch, self._given = epoch, given
        self._next_epoch, self._next_batch = (epoch + 1, 0) if given == len(self) else (epoch, given)

    def __iter__(self) -> Iterator[Any]:
        """The batches that are left of an epoch; the position is read with the first of them, not before."""
        # Lightning makes an iterator before it names the epoch.
        epoch, first = self._next_epoch, self._next_batch
        self._epoch, self._given = epoch, first
        self._next_epoch, self._next_batch = epoch + 1, 0
        for number, batch in enumerate(self._batches(epoch, first), first):
            # Before it is handed out: a state saved while it is used has to count it.
            self._given = number + 1
            yield batch

    @abstractmethod
    def _batches(self, epoch: int, first: int) -> Iterator[Any]:
        """This rank's part of the batches of an epoch, beginning at a number."""

    @abstractmethod
    def _identity(self) -> dict[str, int]:
        """Numbers that a loader has to share for its batches to be the same."""


class BatchLoader(PositionedLoader):
    """Batches of a split; each process gets its part of a batch.

    Tensors lie on the device, whole, and each process changes the global batch and keeps its part: the parts are then,
    bit for bit, those of the batch that one process alone would have. Gathering and changing on the device costs little
    beside a step.

    Of a torch Dataset each process reads its own part alone, in worker processes, so that `changes` draw for each part
    on its own. While a sample is made, the global random states of torch, Python and numpy are seeded by (seed, epoch,
    number of the sample): transforms draw the same in any process, at any position of a resumed run.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = False,
        drop_last: bool = False,
        device: str | torch.device = "cpu",
        changes: Sequence[Change] = (),
        rank: int = 0,
        world_size: int = 1,
        workers: int = WORKERS,
    ) -> None:
        """Move tensors to the device; of a Dataset nothing is read before the first batch is asked for.

        Args:
            split: tensors; or a map-style Dataset of pairs, of which a `BadInput` reaches the caller as one line.
            batch_size: samples of a batch of all processes together.
            seed: of order and changes, 0 or more.
            shuffle: whether each epoch has an order of its own; the order of the samples otherwise.
            drop_last: whether an incomplete last batch is left out.
            device: where the batches are wanted.
            changes: of each batch, one after the other, with one generator of the device.
            rank, world_size: number of this process, and of all. Where a last batch does not divide among them, some
                have a sample more; one that has none is given the first, which does not count.
            workers: processes that read a Dataset; 0 reads in this one.

        Raises:
            BadInput: a batch does not divide among the processes, or is never full.
        """
        samples = length(split)
        if batch_size % world_size:
            raise BadInput(
                f"batch_size is {batch_size}, of all processes together; give a multiple of their number, {world_size}"
            )
        if drop_last and samples < batch_size:
            raise BadInput(f"{samples} samples do not fill a batch of {batch_size}; give a smaller batch_size")
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.shuffle, self.drop_last = shuffle, drop_last
        self.device, self.changes = torch.device(device), tuple(changes)
        self.rank, self.world_size, self.workers = rank, world_size, workers
        if isinstance(split, Tensors):
            split = Tensors(*move_data_to_device((split.inputs, split.targets), self.device))
        self.split = split
        super().__init__()

    def __len__(self) -> int:
        """Batches of an epoch, the same on each rank."""
        full, rest = divmod(self.samples, self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def _identity(self) -> dict[str, int]:
        return {"seed": self.seed, "samples": self.samples, "batch_size": self.batch_size}

    def _order(self, epoch: int) -> Tensor:
        """Numbers of the samples of an epoch; drawn on the CPU, to be the same for every device."""
        if not self.shuffle:
            return torch.arange(self.samples, device="cpu")
        generator = torch.Generator().manual_seed(seed_of(self.seed, _ORDER, epoch))
        return torch.randperm(self.samples, generator=generator, device="cpu")

    def counts(self, number: int) -> bool:
        """Tell whether this rank has samples of its own in a batch."""
        return len(self._places(min(self.batch_size, self.samples - number * self.batch_size))) > 0

    def _own(self, rows: Any, count: int) -> Any:
        """This rank's part of the rows of a global batch; the first row where it has none."""
        own = self._places(count) or range(1)
        return rows_of(rows, slice(own.start, own.stop))

    def _places(self, rows: int) -> range:
        return range(self.rank * rows // self.world_size, (self.rank + 1) * rows // self.world_size)

    def _changed(self, inputs: Any, targets: Tensor, *key: int) -> tuple[Any, Tensor]:
        generator = torch.Generator(self.device).manual_seed(seed_of(self.seed, _BATCH, *key))
        for change in self.changes:
            inputs, targets = change(inputs, targets, generator)
        return inputs, targets

    def _batches(self, epoch: int, first: int) -> Iterator[tuple[Any, Any]]:
        if isinstance(self.split, Tensors):
            return self._gathered(self.split, epoch, first)
        return self._read(self.split, epoch, first)

    def _gathered(self, split: Tensors, epoch: int, first: int) -> Iterator[tuple[Any, Tensor]]:
        batches = torch.split(self._order(epoch).to(self.device), self.batch_size)
        for number, chosen in enumerate(batches[first : len(self)], first):
            inputs, targets = self._changed(rows_of(split.inputs, chosen), split.targets[chosen], epoch, number)
            yield self._own(inputs, len(chosen)), self._own(targets, len(chosen))

    def _read(self, dataset: Dataset[Sample], epoch: int, first: int) -> Iterator[tuple[Any, Any]]:
        globally = torch.split(self._order(epoch), self.batch_size)[first : len(self)]
        batches = [self._own(rows, len(rows)).tolist() for rows in globally]
        loader = DataLoader(
            _SeededSamples(dataset, self.seed, epoch),
            batch_sampler=batches,
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=self.device.type == "cuda",
            # Of its own: the loader would draw a number from the global random state.
            generator=torch.Generator(),
        )
        for number, read in enumerate(loader, first):
            if isinstance(read, BadInput):
                raise read
            inputs, targets = move_data_to_device(read, self.device)
            yield self._changed(inputs, targets, epoch, number, self.rank)


class _SeededSamples(Dataset[Sample | BadInput]):
    """Samples that are made with a random state of their own."""

    def __init__(self, dataset: Dataset[Sample], seed: int, epoch: int) -> None:
        self.dataset, self.seed, self.epoch = dataset, seed, epoch

    def __getitem__(self, index: int) -> Sample | BadInput:
        """A sample; or the error on it, which the loader would else wrap into a worker's traceback."""
        seed, device = seed_of(self.seed, _SAMPLE, self.epoch, index), torch.device("cpu")
        if get_worker_info() is None:
            with seeded(device, seed):
                return self._made(index)
        # Nobody else reads a worker's states: to give them back takes longer than many a sample.
        seed_everything(seed, device)
        return self._made(index)

    def _made(self, index: int) -> Sample | BadInput:
        try:
            return self.dataset[index]
        except BadInput as error:
            return error
        except Exception as problem:
            if users_place(problem) is None:
                raise
            return BadInput(f"sample {index}: {told(problem)}; mend the code or the data it reads")


def _collate(samples: Sequence[Sample | BadInput]) -> tuple[Any, Any] | BadInput:
    """Tensors of inputs and of labels or masks; lists of both where targets are mappings of boxes."""
    pairs = []
    for sample in samples:
        if isinstance(sample, BadInput):
            return sample
        pairs.append(sample)
    inputs, targets = (list(part) for part in zip(*pairs, strict=True))
    if isinstance(targets[0], Mapping):
        return inputs, targets
    if len({one.shape for one in inputs}) > 1:
        sizes = sorted({"x".join(map(str, one.shape)) for one in inputs})
        return BadInput(
            f"inputs of a batch are of shapes {' and '.join(sizes[:2])}; bring them to one size, with --size"
        )
    stacked = torch.stack(targets) if isinstance(targets[0], Tensor) else torch.tensor(list(map(int, targets)))
    return torch.stack(inputs), stacked

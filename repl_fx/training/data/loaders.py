"""Batches whose order and changes a seed fixes, so that a run that is resumed sees those it would have seen.

Everything random is drawn from generators seeded by (seed, epoch, number of the batch); nothing is carried over from
one batch to the next, and the global random state is neither read nor moved. A position is then two numbers, the epoch
and the batches given out, and that is the state of a loader (see `positioned`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from repl_fx._torch import pytree
from repl_fx.errors import BadInput, told, users_place
from repl_fx.training.data.augmentation import Change
from repl_fx.training.data.kinds import Sample, Split, Tensors, length
from repl_fx.training.data.positioned import PositionedLoader, seed_of

# What a generator is for: two purposes never share a stream.
_ORDER, _BATCH, _SAMPLE = range(3)


class Options(TypedDict, total=False):
    """What all loaders can be told.

    Attributes:
        seed: of order and changes, 0 or more; 0.
        shuffle: whether each epoch has an order of its own; the order of the samples otherwise, the default.
        drop_last: whether an incomplete last batch is left out; False.
        device: where the batches are wanted; the CPU.
        change: of each batch, with a generator of the device; None.
        rank, world_size: number of this process, and of all; 0 of 1. Where a last batch does not divide among them,
            some have a sample more; one that has none is given the first, which does not count.
    """

    seed: int
    shuffle: bool
    drop_last: bool
    device: str | torch.device
    change: Change | None
    rank: int
    world_size: int


class BatchLoader(PositionedLoader):
    """Batches of samples that have numbers; each process gets its part of a batch."""

    def __init__(
        self,
        samples: int,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = False,
        drop_last: bool = False,
        device: str | torch.device = "cpu",
        change: Change | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if samples < 1:
            raise BadInput("a loader needs at least one sample")
        if batch_size < 1:
            raise BadInput(f"batch_size is {batch_size}; give 1 or more")
        if world_size < 1 or not 0 <= rank < world_size:
            raise BadInput(f"rank is {rank} of {world_size} processes; ranks count from 0")
        if batch_size % world_size:
            raise BadInput(
                f"batch_size is {batch_size}, of all processes together; give a multiple of their number, {world_size}"
            )
        if drop_last and samples < batch_size:
            raise BadInput(f"{samples} samples do not fill a batch of {batch_size}; give a smaller batch_size")
        if seed < 0:
            raise BadInput(f"seed is {seed}; give 0 or more")
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.shuffle, self.drop_last = shuffle, drop_last
        self.device, self.change = torch.device(device), change
        self.rank, self.world_size = rank, world_size
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
            return torch.arange(self.samples)
        generator = torch.Generator().manual_seed(seed_of(self.seed, _ORDER, epoch))
        return torch.randperm(self.samples, generator=generator)

    def _globally(self, order: Tensor, number: int) -> Tensor:
        """Numbers of the samples of one batch of all processes."""
        return order[number * self.batch_size : (number + 1) * self.batch_size]

    def counts(self, number: int) -> bool:
        """Whether this rank has samples of its own in a batch."""
        return len(self._places(min(self.batch_size, self.samples - number * self.batch_size))) > 0

    def _own(self, rows: Tensor) -> Tensor:
        """This rank's part of the rows of a global batch; the first row where it has none."""
        own = self._places(len(rows))
        return rows[own.start : own.stop] if own else rows[:1]

    def _places(self, rows: int) -> range:
        return range(self.rank * rows // self.world_size, (self.rank + 1) * rows // self.world_size)

    def _changed(self, inputs: Tensor, targets: Tensor, *key: int) -> tuple[Tensor, Tensor]:
        if self.change is None:
            return inputs, targets
        generator = torch.Generator(self.device).manual_seed(seed_of(self.seed, _BATCH, *key))
        return self.change(inputs, targets, generator)


class TensorLoader(BatchLoader):
    """Batches of tensors that lie on the device, whole.

    With several processes each one changes the global batch and keeps its part: the parts are then, bit for bit, those
    of the batch that one process alone would have. Gathering and changing on the device costs little beside a step.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        batch_size: int,
        **options: Unpack[Options],
    ) -> None:
        """Move the tensors to the device.

        Args:
            inputs: (n, …).
            targets: (n, …).
            batch_size: samples of a batch of all processes together.
            options: see `Options`.

        Raises:
            BadInput: inputs and targets differ in number, or an argument cannot be.
        """
        if len(inputs) != len(targets):
            raise BadInput(f"{len(inputs)} inputs but {len(targets)} targets; give one target for each input")
        super().__init__(len(inputs), batch_size, **options)
        self.inputs, self.targets = inputs.to(self.device), targets.to(self.device)

    def _batches(self, epoch: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = self._order(epoch).to(self.device)
        for number in range(first, len(self)):
            chosen = self._globally(order, number)
            inputs, targets = self._changed(self.inputs[chosen], self.targets[chosen], epoch, number)
            yield self._own(inputs), self._own(targets)


class FileLoader(BatchLoader):
    """Batches of a torch Dataset that reads file by file, in worker processes.

    While a sample is made, torch's global random state is seeded by (seed, epoch, number of the sample): transforms
    draw the same in any process, at any position of a resumed run. With several processes each one reads and changes
    its own part alone, so that `change` draws for each part on its own.
    """

    def __init__(
        self,
        dataset: Dataset[Sample],
        batch_size: int,
        *,
        workers: int = 2,
        **options: Unpack[Options],
    ) -> None:
        """Keep a data set and the options; nothing is read before the first batch is asked for.

        Args:
            dataset: map-style, of pairs (input, target); a `BadInput` of a sample reaches the caller as one line.
            batch_size: samples of a batch of all processes together.
            workers: processes that read; 0 reads in this one.
            options: see `Options`.

        Raises:
            BadInput: an argument cannot be.
        """
        super().__init__(length(dataset), batch_size, **options)
        self.dataset, self.workers = dataset, workers

    def _batches(self, epoch: int, first: int) -> Iterator[tuple[Any, Any]]:
        order = self._order(epoch)
        batches = [self._own(self._globally(order, number)).tolist() for number in range(first, len(self))]
        loader = DataLoader(
            _SeededSamples(self.dataset, self.seed, epoch),
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
            inputs, targets = pytree.tree_map_only(
                Tensor, partial(Tensor.to, device=self.device, non_blocking=True), read
            )
            yield self._changed(inputs, targets, epoch, number, self.rank)


class _SeededSamples(Dataset[Sample | BadInput]):
    """Samples that are made with a random state of their own."""

    def __init__(self, dataset: Dataset[Sample], seed: int, epoch: int) -> None:
        self.dataset, self.seed, self.epoch = dataset, seed, epoch

    def __getitem__(self, index: int) -> Sample | BadInput:
        """A sample; or the error on it, which the loader would else wrap into a worker's traceback."""
        with torch.random.fork_rng(devices=[]):
            # Not `torch.manual_seed`, which seeds the accelerators too.
            torch.default_generator.manual_seed(seed_of(self.seed, _SAMPLE, self.epoch, index))
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


def loader_of(split: Split, batch_size: int, **options: Unpack[Options]) -> BatchLoader:
    """The loader that fits a split: on the device where the split is tensors, file by file otherwise."""
    if isinstance(split, Tensors):
        return TensorLoader(split.inputs, split.targets, batch_size, **options)
    return FileLoader(split, batch_size, **options)

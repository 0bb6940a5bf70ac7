"""Loaders whose position is the state of a run: Lightning saves it, and gives it back to a run that goes on.

Lightning saves and restores the state of loaders that have `state_dict` and `load_state_dict`, and tells the epoch
through `sampler.set_epoch`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Self

import numpy as np

from repl_fx.errors import BadInput


def seed_of(seed: int, *key: int) -> int:
    """A seed of 64 bits for a purpose, an epoch and further numbers, by numpy's SeedSequence."""
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0])


class PositionedLoader(ABC):
    """An iterable of batches with a position that can be saved: an epoch, and the batches given out.

    An iteration begins where a loaded state says, else with the first batch of the epoch that `set_epoch` named, else
    with the first batch of the epoch after the one of the iteration before. One iteration at a time.
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

"""Passes over batches of a user that have no length: generators, and loaders of an IterableDataset.

The length of a pass is counted, once, by reading all of it; each pass is expected to be as long.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader

from repl_fx._torch import without_workers
from repl_fx.errors import BadInput, ReplFxError, one_line, told, users_place

# Seconds within which a pass that is counted has to end: a stream without an end has none.
LONGEST = 60.0
_END = object()


class Passes:
    """Batches whose every pass a function begins anew.

    Attributes:
        begin: returns the batches of a pass.
        where: words that begin each error.

    Args:
        first: an iterator that `begin` has returned already; another one is expected the next time.
    """

    def __init__(self, begin: Callable[[], Any], where: str, first: Iterator[Any] | None = None) -> None:
        self.begin, self.where, self._before = begin, where, first
        self._length: int | None = None

    def __iter__(self) -> Iterator[Any]:
        """Begin a pass.

        Raises:
            BadInput: it is no iterable, or the one of the pass before, of which nothing is left.
        """
        with reading(self.where):
            found = self.begin()
        if not isinstance(found, Iterable):
            raise BadInput(f"{self.where}: a pass is {type(found).__name__}; return batches, or yield them")
        if found is self._before:
            raise BadInput(f"{self.where} returns the same iterator each time, empty behind one pass; make a new one")
        self._before = found if isinstance(found, Iterator) else None
        if isinstance(found, DataLoader):
            without_workers(found)
        return iter(found)

    def __len__(self) -> int:
        """Batches of a pass."""
        if self._length is None:
            self._length = self._counted()
        return self._length

    def _counted(self) -> int:
        found, count, limit = iter(self), 0, time.monotonic() + LONGEST
        while True:
            try:
                next_batch(found, f"{self.where}: batch {count}")
            except StopIteration:
                return count
            count += 1
            if time.monotonic() > limit:
                raise BadInput(
                    f"{self.where} has no length, and no end within {LONGEST:.0f} s and {count} batches; give it a "
                    "length (__len__, of an IterableDataset too), or fewer batches"
                )


def with_length(loader: Iterable[Any], where: str) -> Iterable[Any]:
    """A loader as it is where it has a length; else as passes over it, which are counted."""
    try:
        len(loader)  # type: ignore[arg-type]
    except TypeError:
        # Of a DataLoader too, where its data set is an IterableDataset without a length.
        return Passes(lambda: loader, where)
    return loader


def next_batch(batches: Iterator[Any], where: str) -> Any:
    """The next batch of a user's loader.

    Raises:
        BadInput: the user's code raises, or a process that reads was ended; says which line.
        StopIteration: none is left.
    """
    with reading(where):
        batch = next(batches, _END)
    if batch is _END:
        raise StopIteration
    return batch


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Read by the code of a user, and nothing else; what it raises becomes a line that says where.

    Raises:
        BadInput: see above.
    """
    try:
        yield
    except ReplFxError:
        raise
    except Exception as problem:
        # A data set of a user's own may raise anything.
        if lost := lost_worker(problem):
            raise lost from problem
        raise BadInput(f"{where}: {told(problem)}; mend the code or the data it reads") from problem


def lost_worker(problem: Exception) -> BadInput | None:
    """The line for a process of the data loader that the system has ended; None for another error."""
    said = one_line(problem) if isinstance(problem, ConnectionError | EOFError) else str(problem)
    # The loader may first see that the pipe from it has ended; code of a user has connections of its own.
    if not said.startswith("DataLoader worker") and (said == str(problem) or users_place(problem) is not None):
        return None
    return BadInput(
        f"a process that reads the data was ended ({said.splitlines()[0].rstrip('. ')}); go on with --resume"
    )

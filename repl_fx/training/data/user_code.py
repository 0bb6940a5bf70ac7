"""Data of a user's own code: `file.py:function`.

It returns `Data`, a LightningDataModule, batches to train on and held out (train, test), or batches alone, of which the
same are held out. Batches are a DataLoader, a list, any other iterable, or a generator function, called anew for each
pass; a function that returns, or is, a generator is called anew as well. The length of a pass that has none, as those
of generators and of an IterableDataset, is counted, once, by reading all of it; each pass is expected to be as long.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from repl_fx._torch import without_workers
from repl_fx.arguments import in_words
from repl_fx.errors import BadInput, ReplFxError, SourceError, close_matches, one_line, told, users_place
from repl_fx.sources.interrupts import code_of_users
from repl_fx.sources.python_file import executed
from repl_fx.training.data.data_set import Data, DataRequest, UserData

_WANTED = "return Data, a pair of DataLoaders (train, test), one DataLoader, batches or a LightningDataModule"
DEFAULT = "data"
# Seconds within which a pass that is counted has to end: a stream without an end has none.
LONGEST = 60.0
_END = object()


def load_user_code(request: DataRequest) -> Data | UserData:
    """Call the function of `file.py:function`, or `data` of `file.py`, without arguments.

    Raises:
        BadInput: no such file or function, the code raises, or what it returns is no data.
    """
    made, where, make = called(request.name, DEFAULT)
    return as_data(made, make, request.name, where)


def called(spec: str, default: str, *arguments: Any) -> tuple[Any, str, Callable[..., Any]]:
    """The result of a function, or of a class, of `file.py:name`, the words for it in messages, and the function.

    Args:
        spec: `file.py:name`, or `file.py`.
        default: the name where none is given.
        arguments: it is called with.

    Raises:
        BadInput: no such file or name, or the code raises.
    """
    path, name = _parts(spec, default)
    if not path.is_file():
        close = close_matches(path.name, [other.name for other in path.parent.glob("*.py")])
        raise BadInput(f"no file {path}{close}; give file.py:{name}")
    path = path.resolve()
    try:
        with executed(path) as module:
            make = _callable(vars(module), name, path)
            with code_of_users(f"{path}:{name} raised", path.parent):
                return make(*arguments), f"{path}:{name}", make
    except SourceError as error:
        raise BadInput(str(error)) from error.__cause__


def _parts(spec: str, default: str) -> tuple[Path, str]:
    if spec.endswith(".py"):
        return Path(spec), default
    file, _, name = spec.rpartition(":")
    if not name.isidentifier():
        raise BadInput(f"{spec!r} names no function behind the colon; write {file}:FUNCTION")
    return Path(file), name


def _callable(names: dict[str, Any], function: str, path: Path) -> Callable[..., Any]:
    found: Callable[..., Any] | None = names.get(function)
    if not callable(found):
        # Of the file itself; what it imports is not meant.
        own = [name for name, value in names.items() if getattr(value, "__module__", None) == names["__name__"]]
        there = [name for name in own if callable(names[name]) and not name.startswith("_")]
        raise BadInput(f"{path} has no function {function!r}{close_matches(function, there)}; define {function}()")
    return found


def as_data(made: Any, make: Callable[[], Any], name: str, where: str) -> Data | UserData:
    """Data of what a function returned, see the module; `make` returns it anew.

    Raises:
        BadInput: it is no data.
    """
    if isinstance(made, Data):
        return made
    if callable(getattr(made, "train_dataloader", None)):
        return UserData(name, module=made)
    if isinstance(made, tuple) or (isinstance(made, list) and not all(map(_is_batch, made))):
        if len(made) != 2 or not all(map(_gives_batches, made)):
            kinds = ", ".join(in_words(part) for part in made[:3])
            raise BadInput(f"{where} returned {len(made)} values ({kinds}{', …' * (len(made) > 3)}); {_WANTED}")
        train, test = (_loader(part, lambda place=place: make()[place], where) for place, part in enumerate(made))  # type: ignore[misc]
        return UserData(name, train, test)
    if not _gives_batches(made):
        raise BadInput(f"{where} returned {in_words(made)}; {_WANTED}")
    both = _loader(made, make, where)
    said = f"batches of {name}: those to train on are held out, too; give a pair (train, test) for figures of others"
    return UserData(name, both, both, changes=(said,))


def _is_batch(value: Any) -> bool:
    """Tell whether an entry of a list is a batch: in the place of a loader, it would be iterated over."""
    of_tensors = isinstance(value, list) and bool(value) and isinstance(value[0], Tensor)
    return of_tensors or isinstance(value, Tensor | Mapping | tuple)


def _gives_batches(value: Any) -> bool:
    return isinstance(value, Iterable | Callable) and not isinstance(value, Tensor | Mapping | str | bytes | Dataset)


def _loader(value: Any, again: Callable[[], Any], where: str) -> Iterable[Any]:
    """An iterable that may be iterated over several times, and has a length.

    Args:
        value: a loader, an iterator or a function.
        again: makes an iterator anew.
    """
    if isinstance(value, Iterator):
        return Passes(again, where, value)
    return Passes(value, where) if not isinstance(value, Iterable) else with_length(value, where)


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
        return self._counted

    @cached_property
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

"""Data of a user's own code: `file.py:function`, which returns `Data`, two loaders or a LightningDataModule."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from repl_fx.arguments import in_words
from repl_fx.errors import BadInput, SourceError
from repl_fx.sources.interrupts import code_of_users
from repl_fx.sources.python_file import executed
from repl_fx.sources.source import close_matches
from repl_fx.training.data.kinds import Data, Request, UserData

_WANTED = "return Data, a pair of DataLoaders (train, test) or a LightningDataModule"
DEFAULT = "data"


def load_user_code(request: Request) -> Data | UserData:
    """Call the function of `file.py:function`, or `data` of `file.py`, without arguments.

    Raises:
        BadInput: no such file or function, the code raises, or what it returns is no data.
    """
    made, where = called(request.name, DEFAULT)
    return _as_data(made, request.name, where)


def called(spec: str, default: str, *arguments: Any) -> tuple[Any, str]:
    """The result of a function, or of a class, of `file.py:name`, and the words for it in messages.

    Args:
        spec: `file.py:name`, or `file.py`.
        default: the name where none is given.
        arguments: it is called with.

    Raises:
        BadInput: no such file or name, or the code raises.
    """
    path, name = _parts(spec, default)
    if not path.is_file():
        raise BadInput(f"no file {path}; give file.py:{name}")
    path = path.resolve()
    try:
        with executed(path) as module:
            make = _callable(vars(module), name, path)
            with code_of_users(f"{path}:{name} raised", path.parent):
                return make(*arguments), f"{path}:{name}"
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


def _as_data(made: Any, name: str, where: str) -> Data | UserData:
    if isinstance(made, Data):
        return made
    if callable(getattr(made, "train_dataloader", None)):
        return UserData(name, module=made)
    if isinstance(made, tuple | list):
        if len(made) != 2 or not all(isinstance(loader, Iterable) for loader in made):
            raise BadInput(f"{where} returned {len(made)} values; {_WANTED}")
        return UserData(name, *made)
    raise BadInput(f"{where} returned {in_words(made)}; {_WANTED}")

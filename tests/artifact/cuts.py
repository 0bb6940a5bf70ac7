"""What a process that is stopped before one of its writes leaves behind, for each of its writes."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# What Python reports before it is done; https://docs.python.org/3/library/audit_events.html
_WRITES = ("os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.symlink", "os.truncate")

_watched: list[tuple[Path, Path]] = []
_hooked: list[bool] = []


@contextmanager
def cut_before_each_write(directory: Path, to: Path) -> Iterator[None]:
    """Copy a directory before each write in it: what is there when the process is stopped at that moment.

    Args:
        directory: watched while the block runs.
        to: where the copies go, by number.
    """
    if not _hooked:
        # A hook of Python's stays for good.
        _hooked.append(True)
        sys.addaudithook(_see)
    to.mkdir(parents=True)
    _watched.append((directory, to))
    try:
        yield
    finally:
        _watched.clear()


def _see(event: str, args: tuple[Any, ...]) -> None:
    if not _watched or not (event in _WRITES or (event == "open" and _writes(args))):
        return
    directory, to = _watched[0]
    if not any(isinstance(name, (str, os.PathLike)) and Path(name).is_relative_to(directory) for name in args):
        return
    _watched.clear()
    if directory.exists():
        shutil.copytree(directory, to / f"{len(list(to.iterdir())):03}", symlinks=True)
    else:
        (to / f"{len(list(to.iterdir())):03}-absent").mkdir()
    _watched.append((directory, to))


def _writes(args: tuple[Any, ...]) -> bool:
    return bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))

"""Files that appear under their names only when they are whole.

A file is written under its own name in a directory beside its place, and renamed: whatever cuts that short, what lies
at the place is the file of before or the new one.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from repl_fx.errors import OutputError


@contextmanager
def writing(place: object) -> Iterator[None]:
    """Say of an `OSError` that a place cannot be written.

    Raises:
        OutputError: names the place, with the reason.
    """
    try:
        yield
    except OSError as problem:
        raise OutputError(f"{place} cannot be written: {problem.strerror or problem}") from problem


@contextmanager
def replacing(file: Path, *, prefix: str | None = None, durable: bool = False) -> Iterator[Path]:
    """A path to write to, which takes the place of a file at the end; files written beside it come along before it.

    Args:
        file: its directory is there.
        prefix: of the name of the directory beside the place.
        durable: whether the file is on the disk afterwards.
    """
    with TemporaryDirectory(prefix=prefix or f".{file.name}.", dir=file.parent) as scratch:
        written = Path(scratch, file.name)
        yield written
        beside = [path for path in written.parent.iterdir() if path != written]
        for path in (*beside, written):
            if durable:
                synchronise(path)
            path.replace(file.with_name(path.name))
        if durable:
            synchronise(file.parent)


def write_whole(file: Path, text: str) -> None:
    """Write a file of text.

    Raises:
        OutputError: the place cannot be written; what was there stays.
    """
    with writing(file), replacing(file) as written:
        written.write_text(text, encoding="utf-8")


def synchronise(path: Path) -> None:
    """Have a file, or the names in a directory, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as problem:
        # Not every file system can do so for a directory.
        if problem.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EROFS):
            raise
    finally:
        os.close(handle)

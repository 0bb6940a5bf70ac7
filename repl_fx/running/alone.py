"""One thread at a time, while the process is changed.

A trace puts functions of its own in the place of torch's and Python's, and a check seeds the random generators. A
process has one of each, so that two threads that did so at once would see each other's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

_ONE_THREAD = RLock()


@contextmanager
def alone() -> Iterator[None]:
    """Wait until no other thread is inside such a context; also a decorator."""
    with _ONE_THREAD:
        yield

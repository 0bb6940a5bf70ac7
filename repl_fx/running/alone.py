"""One thread at a time, while the process is changed.

A trace puts functions of its own in the place of torch's and Python's, and a check seeds the random generators. A
process has one of each, so that two threads that did so at once would see each other's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock, get_ident

_ONE_THREAD = RLock()
_threads: list[int] = []


@contextmanager
def alone() -> Iterator[None]:
    """Wait until no other thread is inside such a context; also a decorator."""
    with _ONE_THREAD:
        _threads.append(get_ident())
        try:
            yield
        finally:
            _threads.pop()


def is_bystander() -> bool:
    """Tell whether another thread is in such a context, whose functions in the place of torch's this one meets."""
    return _threads[:1] not in ([], [get_ident()])

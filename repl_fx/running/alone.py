"""One thread at a time, while the process is changed.

A trace puts functions of its own in the place of torch's and Python's, and a check seeds the random generators. A
process has one of each, so that two threads that did so at once would see each other's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from threading import RLock
from typing import ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")

_ONE_THREAD = RLock()


def alone(function: Callable[Parameters, Returned]) -> Callable[Parameters, Returned]:
    """Let a function wait until no other thread is in one that is decorated so."""

    @wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Returned:
        with _ONE_THREAD:
            return function(*args, **kwargs)

    return call

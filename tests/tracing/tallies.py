"""Things that count, in a file that no test imports by its head: a model is handed them."""

from __future__ import annotations

from torch import Tensor

CALLS = 0


class Tally:
    """Counts the calls of all its objects."""

    total = 0

    def __call__(self, x: Tensor) -> Tensor:
        Tally.total += 1
        return x * Tally.total


def counted(x: Tensor) -> Tensor:
    """Counts in a variable of this file."""
    global CALLS
    CALLS += 1
    return x * CALLS

"""Things that count, in a file that another imports."""

from __future__ import annotations

from torch import Tensor

CALLS = [0]


class Counter:
    """Counts its calls."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.count += 1
        return x * self.count


COUNTER = Counter()


def counted(x: Tensor) -> Tensor:
    """Counts in a variable of this file."""
    CALLS[0] += 1
    return x * CALLS[0]

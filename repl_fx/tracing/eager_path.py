"""Let a model take the way through its forward that it takes when nobody traces it.

Some models ask `torch.compiler.is_exporting()` and compute otherwise then: with a mask of ones where they use none when
they run, for instance, which other kernels answer for. A graph of that is not the model, to the last bit.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.export import ExportedProgram


class Asked:
    """Whether a forward wanted to know if it is being exported, and was told that it is not."""

    def __init__(self) -> None:
        self.yes = False


@contextmanager
def unaware_of_export(asked: Asked, *, unaware: bool = True) -> Iterator[None]:
    """Tell all code but torch's own that no export is going on, for the time of one.

    Args:
        asked: notes whether anything asked.
        unaware: with False, nothing is done.
    """
    own: Any = torch.compiler.is_exporting

    def is_exporting() -> bool:
        caller = str(sys._getframe(1).f_globals.get("__name__"))
        if caller.split(".")[0] == "torch":
            return bool(own())
        asked.yes = True
        return False

    with patch.object(torch.compiler, "is_exporting", is_exporting if unaware else own):
        yield


def is_bounded(program: ExportedProgram) -> bool:
    """Whether a trace went a way that only sizes up to a limit go, such as a text shorter than a window."""
    ranges = program.range_constraints.values()
    return any(bounds.upper.is_Integer and bounds.lower != bounds.upper for bounds in ranges)

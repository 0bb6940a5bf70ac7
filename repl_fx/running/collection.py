"""The search for reference cycles, which makes long work with many objects longer."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collection_paused() -> Iterator[None]:
    """Pause the search for reference cycles; also a decorator.

    Passes make many objects that stay alive, and what torch.export left behind is old by then: each search looks at all
    of it, and up to a third of the time of the passes would go into searches. Not for torch.export itself, which leaves
    cycles in plenty.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

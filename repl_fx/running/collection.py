"""The search for reference cycles, which makes long work with many objects longer."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager


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


@contextmanager
def imports_passed_over() -> Iterator[Callable[[], None]]:
    """Pause the search for reference cycles until what is yielded is called, and have it pass over what is there then.

    A third of the time that torch takes to be imported goes into searches of what it has defined so far.
    """
    frozen = gc.get_freeze_count()
    with ExitStack() as pause:
        pause.enter_context(collection_paused())
        if not frozen:
            # Behind the command all is looked at: libraries in C++ tell what was not freed when a process ends.
            pause.callback(gc.freeze)
        try:
            yield pause.close
        finally:
            pause.close()
            if not frozen:
                gc.unfreeze()

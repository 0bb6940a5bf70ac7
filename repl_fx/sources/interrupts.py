"""Tell Ctrl-C from a KeyboardInterrupt that a model file raises itself."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Watch for Ctrl-C while code that is not ours runs; what Ctrl-C does stays the same.

    Yields:
        Whether Ctrl-C was pressed since, to be asked at any time.
    """
    pressed = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    # Handlers run in the main thread, and can be set there alone; None is one that Python did not set.
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield pressed.is_set
        return

    def note(number: int, frame: FrameType | None) -> None:
        pressed.set()
        before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield pressed.is_set
    finally:
        # The code may have set a handler of its own, which stays.
        if signal.getsignal(signal.SIGINT) is note:
            signal.signal(signal.SIGINT, before)

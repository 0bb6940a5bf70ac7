"""Run code of model files: what it raises is an error of the source, and Ctrl-C is not what it raises."""

from __future__ import annotations

import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from repl_fx.errors import SourceError
from repl_fx.sources.source import describe


@contextmanager
def code_of_users(failed: str, directory: Path) -> Iterator[None]:
    """Run code of a user's directory; whatever it raises becomes a `SourceError` that says where it was raised."""
    with interrupts() as interrupted:
        try:
            yield
        except BaseException as error:
            if interrupted():
                raise
            raise SourceError(f"{failed} {describe(error)}{_where(error, directory)}") from error


def _where(error: BaseException, directory: Path) -> str:
    """The innermost line of the user's own code, which is where to look; library lines say little."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}, line {error.lineno})"
    frames = [(Path(frame.f_code.co_filename), line) for frame, line in traceback.walk_tb(error.__traceback__)]
    own = [at for at in frames if at[0].is_relative_to(directory) and "site-packages" not in at[0].parts]
    return " ({}, line {})".format(*own[-1]) if own else ""


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Watch for Ctrl-C while code that is not ours runs, and tell whether it was pressed; it does what it did."""
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

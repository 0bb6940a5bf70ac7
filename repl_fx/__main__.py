"""`repl-fx`, and `python -m repl_fx`: the command line as a process of its own."""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import stat
import sys
import threading
from typing import Any


def run() -> None:
    """Run the command line, and end the process.

    Python would take apart all that was imported, object by object, which takes as long as a small model's capture.
    """
    _keep_streams()
    before = _written()
    try:
        _run()
    except SystemExit as end:
        # Who looks on, such as a profiler, has something to do behind it, threads have work to finish, and a file that
        # the model's code has open is written to its end.
        watched = sys.getprofile() is not None or sys.gettrace() is not None
        working = sum(not thread.daemon for thread in threading.enumerate()) > 1
        writing = before is None or not (_written() or before) <= before
        if watched or working or writing or not isinstance(end.code, int):
            raise
        atexit._run_exitfuncs()
        # Where nobody reads any more, Python has its own words for it.
        with contextlib.suppress(OSError):
            for stream in filter(None, (sys.stdout, sys.stderr)):
                stream.flush()
            os._exit(end.code)
        raise


def _run() -> None:
    try:
        # The commands take a while to be imported.
        from repl_fx.cli import main

        main()
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print("repl-fx: error: interrupted", file=sys.stderr)
        sys.exit(130)


class _Lossy(io.FileIO):
    """A file in which nothing has to arrive: what cannot be written is dropped."""

    def write(self, data: Any) -> int:
        """Write what can be written."""
        with contextlib.suppress(OSError):
            return super().write(data)
        return memoryview(data).nbytes


def _keep_streams() -> None:
    """Let each stream lead somewhere: one that is closed nowhere, and stderr so that no command fails by it.

    The next file to be opened would have the number of a closed stream, and get what libraries in C print.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115
    told: Any = sys.__stderr__
    if sys.stderr is told is not None:
        raw = io.BufferedWriter(_Lossy(told.fileno(), "w", closefd=False))
        sys.stderr = io.TextIOWrapper(raw, told.encoding, told.errors, line_buffering=True)


def _written() -> set[int] | None:
    """The files, pipes and sockets that are open for writing; None on a system that does not say."""
    try:
        import fcntl

        numbers = [int(name) for name in os.listdir("/dev/fd")]
    except (ImportError, OSError):
        return None
    found = set()
    for number in numbers:
        with contextlib.suppress(OSError):
            kind = os.fstat(number).st_mode
            takes = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
            if takes and (stat.S_ISREG(kind) or stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind)):
                found.add(number)
    return found


if __name__ == "__main__":
    run()

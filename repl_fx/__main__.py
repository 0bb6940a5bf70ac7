"""`repl-fx`, and `python -m repl_fx`: the command line as a process of its own."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading

from repl_fx.cli import main


def run() -> None:
    """Run the command line, and end the process.

    Python would take apart all that was imported, object by object, which takes as long as a small model's capture.
    """
    try:
        main()
    except SystemExit as end:
        # Who looks on, such as a profiler, has something to do behind it; loggers and data of a training may have files
        # open, and threads work to finish.
        watched = sys.getprofile() is not None or sys.gettrace() is not None or "pytorch_lightning" in sys.modules
        working = sum(not thread.daemon for thread in threading.enumerate()) > 1
        if watched or working or not isinstance(end.code, int):
            raise
        atexit._run_exitfuncs()
        # Where nobody reads any more, Python has its own words for it.
        with contextlib.suppress(OSError):
            for stream in filter(None, (sys.stdout, sys.stderr)):
                stream.flush()
            os._exit(end.code)
        raise


if __name__ == "__main__":
    run()

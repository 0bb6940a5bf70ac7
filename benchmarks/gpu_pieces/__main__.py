"""One piece, in the process that `benchmarks.gpu` starts for it: python -m benchmarks.gpu_pieces SETTINGS RESULT."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
import warnings
from pathlib import Path

import torch

from benchmarks.gpu_pieces.setting import Record, Setting
from benchmarks.gpu_pieces.table import pieces
from repl_fx.benchmarking.hardware import of_device
from repl_fx.environment.files import write_whole


def end_with_parent() -> None:
    """End this process and those that it started when the one that started it is gone, however that ended."""

    def wait() -> None:
        # Ends when the other end of the pipe is closed; without the lock of `sys.stdin`, which Python takes at its end.
        os.read(0, 1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def main(settings: str, result: str) -> None:
    """Do a piece, and write what it measured."""
    end_with_parent()
    # Those of libraries; what matters is raised.
    warnings.simplefilter("ignore")
    given = json.loads(settings)
    device = torch.device(given["device"])
    (piece,) = (one for one in pieces(given["scale"]) if one.key == given["key"])

    def save(found: Record) -> None:
        write_whole(Path(result), json.dumps({"machine": of_device(device), "result": found}))

    paths = {name: Path(given[name]) for name in ("data", "kept", "records")}
    setting = Setting(given["scale"], device, **paths, seconds=given["seconds"], save=save)
    module, _, function = piece.work.partition(":")
    save(getattr(importlib.import_module(f"benchmarks.gpu_pieces.{module}"), function)(setting, **piece.arguments))


if __name__ == "__main__":
    main(*sys.argv[1:])

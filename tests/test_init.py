"""`import repl_fx` alone leads to every name and module, and imports none before it is asked for."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

import repl_fx

MODULES = sorted(module.name for module in pkgutil.iter_modules(repl_fx.__path__) if not module.name.startswith("_"))


def test_every_module_is_there_for_readers_of_types_too() -> None:
    stub = Path(repl_fx.__file__).with_suffix(".pyi").read_text()
    assert [name for name in MODULES if f"    {name} as {name},\n" not in stub] == []


def test_modules_come_when_they_are_asked_for() -> None:
    code = (
        "import sys, repl_fx\n"
        "assert repl_fx.errors.BadInput is repl_fx.BadInput\n"
        "assert not {'torch', 'repl_fx.pipeline', 'repl_fx.training'} & sys.modules.keys()\n"
        f"print(*(getattr(repl_fx, name).__name__ for name in {MODULES}))\n"
        "from repl_fx import *\n"
        "print(transform.__module__, 'training' in globals(), 'errors' in dir(repl_fx))\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split("\n")[:2] == [
        " ".join(f"repl_fx.{name}" for name in MODULES),
        "repl_fx.pipeline False False",
    ], done.stderr

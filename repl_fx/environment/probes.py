"""Import packages in a process of its own: one that ends its process, or cannot be imported, ends no command.

The child, this file run as a script, imports one module after the other, and writes two lines of JSON for each: when
it begins, and what came of it.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

# What a package imports with the first model alone: torchaudio, for one, wherever it is installed.
_BEHIND = {"transformers": "transformers.processing_utils"}
# Before what a library writes to stderr.
_MARK = "\x1e"


@dataclass(frozen=True)
class Probe:
    """The result of an import.

    Attributes:
        problem: why the module cannot be imported, in one line; None where it can.
        facts: what was asked of it, by name.
        broken: the package that is to be mended, which the module may import; empty where nothing is known.
    """

    problem: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    broken: str = ""


def probe(modules: Sequence[str], progress: Callable[[str], None] = lambda stage: None) -> dict[str, Probe]:
    """Import modules, and ask torch and ONNX Runtime for devices and providers.

    Args:
        modules: their names, in the order in which they are imported.
        progress: gets the name of each stage as it begins.
    """
    found: dict[str, Probe] = {}
    left = list(modules)
    while left:
        code, tail = _run(left, found, progress)
        left = [name for name in left if name not in found]
        if left:
            ended = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            found[left.pop(0)] = Probe(f"its import ends the process ({ended}){tail and ': '}{tail}")
    return found


def _run(modules: Sequence[str], found: dict[str, Probe], progress: Callable[[str], None]) -> tuple[int, str]:
    """Let a child import modules, and note what it says; its exit code, and the last line of its stderr."""
    # Its path is that of this process, in which the folder of this file is not: it would hide other modules.
    command = [sys.executable, "-P", __file__, json.dumps([sys.path, list(modules)])]
    with tempfile.TemporaryFile("w+", errors="replace") as noise:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=noise, text=True) as child:
            for line in child.stdout or ():
                name, probed = json.loads(line)
                if probed is None:
                    progress(f"import {name}")
                else:
                    found[name] = Probe(**probed)
        noise.seek(0)
        lines = noise.read().rpartition(_MARK)[2].split("\n")
    return child.returncode, next((line.strip()[:200] for line in reversed(lines) if line.strip()), "")


def _probe_all(modules: Sequence[str]) -> None:
    # What a library prints is no answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in modules:
        os.write(2, _MARK.encode())
        print(json.dumps([name, None]), file=answers, flush=True)
        print(json.dumps([name, _probed(name)]), file=answers, flush=True)


def _probed(name: str) -> dict[str, Any]:
    from repl_fx.errors import ForeignError, broken_package, foreign_code, one_line

    facts: dict[str, Any] = {}
    try:
        with foreign_code(), warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            module = importlib.import_module(name)
            importlib.import_module(_BEHIND.get(name, name))
            if name in _FACTS:
                facts = _FACTS[name](module)
                facts["warnings"] = [" ".join(str(one.message).split()) for one in heard if one.category is UserWarning]
    except ForeignError as failed:
        package, problem = broken_package(failed.problem) or (name, failed.problem)
        return {"problem": one_line(problem), "facts": facts, "broken": package}
    return {"problem": None, "facts": facts}


def _of_torch(torch: Any) -> dict[str, Any]:
    cuda = torch.cuda
    devices = [cuda.get_device_properties(i) for i in range(cuda.device_count())] if cuda.is_available() else []
    return {
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "devices": [{"name": one.name, "memory": one.total_memory} for one in devices],
    }


_FACTS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "torch": _of_torch,
    "onnxruntime": lambda onnxruntime: {"providers": onnxruntime.get_available_providers()},
}


if __name__ == "__main__":
    sys.path[:], _MODULES = json.loads(sys.argv[1])
    _probe_all(_MODULES)

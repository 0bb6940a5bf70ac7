"""Scripts that run in copies of one process, which has imported what they need: an import of torch is most of each.

a line of JSON on stdin, with the fields of a `Request`  ->  on stdout the ids of its processes, then their exit codes
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from torch.multiprocessing.spawn import start_processes

from repl_fx.training import processes

ROOT = Path(__file__).parents[2]
# What a run of training imports when it begins.
LIBRARIES = ("pytorch_lightning", "torch._dynamo", "torch.distributed.fsdp", "torchmetrics")


@dataclass(frozen=True)
class Request:
    """A script to run, in one process or several.

    Attributes:
        script: path of the script; beside it is what its processes write, `0.out` and `0.err` for the first.
        arguments: of the script.
        environments: what each process has in its environment beside what this one has.
        spawned: whether processes that the script starts import all anew, as they do for users; else they are forked.
        uninterrupted: whether interrupts are ignored, as in what a shell starts with &.
        limit: seconds that a process has.
    """

    script: str
    arguments: Sequence[str] = ()
    environments: Sequence[Mapping[str, str]] = ({},)
    spawned: bool = False
    uninterrupted: bool = False
    limit: int = 60


class Forks(AbstractContextManager["Forks"]):
    """The process of which all are copies.

    Args:
        modules: that it imports.
    """

    def __init__(self, *modules: str) -> None:
        # Without a module, as scripts are started.
        command = [sys.executable, "-c", "from tests.training.forks import main; main()", *modules]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self._original = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __exit__(self, *_: object) -> None:
        self._original.communicate()

    def start(self, request: Request) -> list[int]:
        """Start the processes of a request; returns their ids."""
        assert self._original.stdin is not None
        print(json.dumps(asdict(request)), file=self._original.stdin, flush=True)
        return self._answer()

    def codes(self) -> list[int]:
        """The exit codes of the processes that were started, when all have ended."""
        return self._answer()

    def ended(self, request: Request) -> list[tuple[int, str, str]]:
        """The exit code of each process of a request, and what it wrote to stdout and stderr."""
        self.start(request)
        codes, place = self.codes(), Path(request.script).parent
        said = [tuple((place / f"{i}.{end}").read_text() for end in ("out", "err")) for i in range(len(codes))]
        return [(code, out, err) for code, (out, err) in zip(codes, said, strict=True)]

    def _answer(self) -> list[int]:
        assert self._original.stdout is not None
        found: list[int] = json.loads(self._original.stdout.readline())
        return found


def _started(request: Request, number: int) -> int:
    """The id of a new process that runs the script."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        code = _run(request, number)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(request: Request, number: int) -> int:
    signal.alarm(request.limit)
    signal.signal(signal.SIGINT, signal.SIG_IGN if request.uninterrupted else signal.default_int_handler)
    place = Path(request.script).parent
    for descriptor, path in enumerate((Path(os.devnull), place / f"{number}.out", place / f"{number}.err")):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), descriptor)
    os.environ |= request.environments[number]
    sys.argv = [request.script, *request.arguments]
    if not request.spawned:
        processes._spawn = partial(start_processes, start_method="fork")
    try:
        runpy.run_path(request.script, run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def main() -> None:
    """Answer requests until there are no more."""
    for module in sys.argv[1:]:
        importlib.import_module(module)
    for line in sys.stdin:
        request = Request(**json.loads(line))
        started = [_started(request, number) for number in range(len(request.environments))]
        print(started, flush=True)
        print([os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in started], flush=True)

"""The process of a command ends at once, with its code, and has done what was to be done at its end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

ROOT = Path(__file__).parents[1]

START = """
import atexit, os, sys, threading
atexit.register(print, "at exit")
own = os._exit
os._exit = lambda code: (print("at once", flush=True), own(code))
"""
THREAD = "threading.Thread(target=lambda: (threading.main_thread().join(), print('done'))).start()"
RUN = "from repl_fx.__main__ import run\nrun()"
NOBODY = "end, beginning = os.pipe()\nos.close(end)\nsys.stdout = open(beginning, 'w')"


@pytest.mark.parametrize(
    ("before", "argument", "code", "printed"),
    [
        ("", "--version", 0, ["repl-fx 0.1.0", "at exit", "at once"]),
        ("", "inspekt", 2, ["at exit", "at once"]),
        ("sys.setprofile(lambda *_: None)", "--version", 0, ["repl-fx 0.1.0", "at exit"]),
        ("log = open(os.devnull, 'w')", "--version", 0, ["repl-fx 0.1.0", "at exit", "at once"]),
        ("import tempfile; log = tempfile.TemporaryFile()", "--version", 0, ["repl-fx 0.1.0", "at exit"]),
        (THREAD, "--version", 0, ["repl-fx 0.1.0", "done", "at exit"]),
        (NOBODY, "inspekt", 120, []),
    ],
    ids=["done", "refused", "watched", "device", "writes", "threads", "nobody reads"],
)
def test_the_process_ends_at_once(before: str, argument: str, code: int, printed: list[str]) -> None:
    # While the command runs, as the code of a model would.
    meanwhile = f"def main():\n    exec({before!r}, globals())\n    own_main()"
    script = f"{START}import repl_fx.cli as m\nown_main = m.main\n{meanwhile}\nm.main = main\n{RUN}"
    command = [sys.executable, "-c", script, argument]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split("\n")[:-1]) == (code, printed), done.stderr


def _sh(command: str) -> subprocess.CompletedProcess[str]:
    shell = ["sh", "-c", f"exec {sys.executable} -m repl_fx {command}"]
    return subprocess.run(shell, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full"])
def test_nothing_depends_on_where_errors_are_told(stderr: str) -> None:
    done = _sh(f"inspekt {stderr}")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")
    done = _sh(f"doctor --json {stderr}")
    assert done.returncode in (0, 1) and "torch" in done.stdout and json.loads(done.stdout)


def test_a_closed_stdout_leads_nowhere() -> None:
    done = _sh("--version >&- <&-")
    assert (done.returncode, done.stderr) == (0, "")
    # Were it free, the log of the machine would have its number, and get what is printed.
    script = "from repl_fx.__main__ import _keep_streams as keep; keep(); import sys; print(open('log', 'w').fileno()"
    command = ["sh", "-c", f'exec {sys.executable} -c "{script}, file=sys.stderr)" >&- <&-']
    with TemporaryDirectory() as place:
        opened = subprocess.run(command, cwd=place, env={"PYTHONPATH": str(ROOT)}, capture_output=True, check=False)
    assert int(opened.stderr) > 2


def test_interrupted_while_the_commands_are_imported() -> None:
    press = "if name == 'repl_fx.cli.bench': signal.raise_signal(signal.SIGINT)"
    finder = f"class Finder:\n    def find_spec(self, name, *_):\n        {press}\nsys.meta_path.insert(0, Finder())"
    # Interrupts are ignored in what a script starts with &, such as these tests.
    heard = "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [sys.executable, "-c", f"{heard}\n{finder}\n{RUN}", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "repl-fx: error: interrupted\n")

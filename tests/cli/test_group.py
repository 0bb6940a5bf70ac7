"""Errors become one line on stderr and an exit code."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from repl_fx.cli.group import CLOSED, CheckFailed, explain, stopping
from repl_fx.errors import BadInput, Stopped
from tests.cli.results import document, one_line, refused

if TYPE_CHECKING:
    from .conftest import Run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("frobnicate",), "No such command 'frobnicate'; see repl-fx --help"),
        (("transfrom",), "No such command 'transfrom'; did you mean transform?; see repl-fx --help"),
        (("transform", "--xyzzy"), "No such option: --xyzzy; see"),
        (("transform", "--surogate"), "No such option: --surogate; did you mean --surrogate?; see repl-fx transform"),
        (("export",), "see repl-fx export --help"),
        (("inspect", "model.py", "--seed", "x"), "--seed"),
        (("bench", "out", "--only", "foo"), "for '--only': 'foo' is not one of 'training', 'inference'; see"),
        (("train", "model.py", "--seed", f"{10**20}"), "Invalid value for '--seed': Input should be less than"),
    ],
)
def test_bad_usage(run: Run, arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)
    assert message in one_line(result)
    assert result.stdout == ""
    told = run(*arguments, "--json")
    assert document(told.stdout) == {"error": one_line(told), "exit_code": 2}


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "weights"), 2, "no space left at weights"),
        (MemoryError(), 2, "not enough memory"),
        (RuntimeError("first\nsecond"), 70, "a defect of repl-fx: RuntimeError: first second"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_goes_wrong_inside(
    run: Run, model_file: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    # By its name a module of repl-fx: what raises in any other is somebody else's code.
    names: dict[str, Any] = {"__name__": "repl_fx.sources.broken", "error": error}
    exec("def fail(*_, **__):\n    raise error", names)
    monkeypatch.setattr("repl_fx.sources.load_source", names["fail"])
    result = run("inspect", model_file)
    told = document(run("inspect", model_file, "--json").stdout)
    assert told == {"error": one_line(result, code), "exit_code": code} and message in told["error"]
    loud = run("inspect", model_file, "-v")
    assert loud.exit_code == code and ("Traceback" in loud.stderr) == isinstance(error, Exception)


@pytest.mark.parametrize(
    ("stop", "code"), [("SystemExit(0)", 2), ("SystemExit(1)", 2), ("GeneratorExit", 2), ("KeyboardInterrupt", 130)]
)
def test_a_forward_that_ends_the_process(run: Run, model_file: Path, tmp_path: Path, stop: str, code: int) -> None:
    model_file.write_text(
        model_file.read_text().replace("return self.head(", f"raise {stop}\n        return self.head(")
    )
    result = run("transform", model_file, "-o", tmp_path / "out")
    assert result.exit_code == code
    assert code == 130 or f"code of yours ended the command with {stop.split('(')[0]}" in one_line(result)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--input-shape", f"{10**18}x8"), "not enough memory"),
        (("--input-shape", f"{10**20}x8"), "has a size that no tensor can have"),
        (("--input-shape", f"{10**12}x8"), "not enough memory"),
        (("--seed", f"{10**20}"), "Invalid value for '--seed'"),
    ],
)
def test_numbers_that_are_too_large(
    run: Run, model_file: Path, tmp_path: Path, arguments: tuple[str, str], message: str
) -> None:
    assert message in refused(run, tmp_path, model_file, *arguments)


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (CheckFailed("not\nequivalent"), "not equivalent", 1),
        (BadInput("every is 1"), "every is 1", 2),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "no space left; free some", 2),
        (PermissionError(errno.EACCES, "Permission denied", "/of/others"), "no permission for /of/others; ask its", 2),
        (
            OSError(errno.ENAMETOOLONG, "File name too long", "xxx"),
            "xxx cannot be reached: File name too long; give",
            2,
        ),
        (RuntimeError("[enforce fail] can't allocate memory: 8 bytes"), "not enough memory (", 2),
        (SystemExit(3), "code of yours ended the command with SystemExit: 3", 2),
        (ZeroDivisionError(), "this is a defect of repl-fx: ZeroDivisionError: ZeroDivisionError", 70),
    ],
)
def test_each_kind_of_error_has_its_line_and_its_code(error: BaseException, message: str, code: int) -> None:
    line, found = explain(error)
    assert line.startswith(message) and found == code and "\n" not in line


@pytest.mark.parametrize("argument", ["--version", "--help", "inspect --help"])
def test_nobody_reads_what_a_command_says_of_itself(argument: str) -> None:
    begin = f"from repl_fx.__main__ import run; import sys; sys.argv[1:] = {argument.split()!r}; run()"
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", begin], stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (CLOSED, "")


@pytest.fixture
def ordinary_signals() -> Iterator[None]:
    """Handle signals as a new process does, whatever a trainer has left in this one."""
    handlers: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("ordinary_signals")
@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Stopped)])
def test_a_signal_that_is_swallowed_ends_a_command_yet(
    number: int, kind: type[BaseException], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Dying:
        def __del__(self) -> None:
            signal.raise_signal(number)

    def swallowed() -> None:
        with suppress(BaseException):
            signal.raise_signal(number)

    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(kind), stopping() as heed:
        heed()
        swallowed()
        heed()
    with pytest.raises(kind), stopping():
        swallowed()
        raise ImportError("cannot load module more than once per process")
    with stopping(), pytest.raises(kind):
        Dying()
        time.sleep(10)
    answers = [True, False]
    monkeypatch.setattr("repl_fx._torch.may_not_raise", lambda _: answers.pop(0))
    with stopping(), pytest.raises(kind):
        signal.raise_signal(number)
        assert answers == [False]
        time.sleep(10)
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "code", "ranks"),
    [(KeyboardInterrupt(), 130, ["0"]), (Stopped(15), 143, []), (BadInput("x"), 2, ["0", "1"])],
)
def test_one_of_several_processes_tells_of_a_signal(
    run: Run, model_file: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, ranks: list[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("repl_fx.sources.load_source", fail)
    told = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        result = run("inspect", model_file)
        assert result.exit_code == code
        told += [rank] if result.stderr else []
    assert told == ranks

"""Steps of long calls: shown on a terminal and in a notebook, by the outermost call, and nowhere else."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from rich.console import Console

import repl_fx
from repl_fx.display import progress
from repl_fx.display.progress import shown, stage, stages_as_steps, tell, telling
from tests.nets import TokenNet

# See `tests.captures`.
TRACED_ALONE = True

_CLEARED = "\x1b[2K"


@shown("inner")
def inner(step: str) -> str:
    tell(step, 1, 2)
    return step


@shown("outer")
def outer(*, progress: Any = None) -> str:
    tell("begin")
    return inner("middle <b>")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What is written to a terminal that stderr leads to."""
    written = io.StringIO()
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("REPL_FX_PROGRESS", "1")

    def console(**settings: Any) -> Console:
        assert settings.pop("stderr")
        return Console(file=written, force_terminal=True, width=100, **settings)

    monkeypatch.setattr(progress, "Console", console)
    return written


def test_the_outermost_call_shows_all_steps(terminal: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    assert outer() == "middle <b>"
    text = terminal.getvalue()
    assert "outer" in text and "outer: middle <b> … 1/2" in text and "inner" not in text
    assert text.rstrip().endswith(_CLEARED)
    assert capsys.readouterr() == ("", "")
    assert inner("alone") == "alone" and "inner: alone … 1/2" in terminal.getvalue()


def test_a_call_that_fails_leaves_the_terminal_as_it_was(terminal: io.StringIO) -> None:
    @shown("broken")
    def broken() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        broken()
    assert "\x1b[?25h" in terminal.getvalue() and terminal.getvalue().rstrip().endswith(_CLEARED)
    assert progress._listener.get() is None


def test_nothing_is_shown_where_none_was_asked_for(terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    outer(progress=print)
    for name, value in (("REPL_FX_PROGRESS", "0"), ("RANK", "1"), ("LOCAL_RANK", "3")):
        with monkeypatch.context() as set_:
            set_.setenv(name, value)
            outer()
    steps: list[tuple[str, int, int | None]] = []
    with telling(lambda *step: steps.append(step)):
        outer()
    assert steps == [("begin", 0, None), ("middle <b>", 1, 2)]
    assert terminal.getvalue() == ""


@shown("staged")
def staged(*, inside: bool = False, progress: Any = None) -> None:
    stage("first")
    if not inside:
        staged(inside=True)
        with stages_as_steps():
            staged(inside=True)


def test_stages_of_the_calls_inside_go_to_the_progress_of_the_outer_one() -> None:
    stages: list[str] = []
    steps: list[str] = []
    staged(progress=stages.append)
    assert stages == ["first", "first"]
    with telling(lambda step, done, total: steps.append(step), stages.append):
        staged(inside=True)
        staged(inside=True, progress=lambda name: stages.append(f"own {name}"))
        staged()
    assert stages == [*["first"] * 3, "own first", "first", "first"] and steps == ["first"]
    with telling(lambda step, done, total: steps.append(step)):
        staged(inside=True)
    assert steps == ["first", "first"] and progress._progress.get() is None


def test_nothing_is_shown_where_stderr_is_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPL_FX_PROGRESS", "1")
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setattr(sys, "stdout", written)
    outer()
    assert written.getvalue() == ""


def test_calls_of_other_threads_are_their_own(terminal: io.StringIO) -> None:
    seen: list[object] = []
    with telling(lambda *step: None):
        thread = threading.Thread(target=lambda: seen.append(progress._listener.get()))
        thread.start()
        thread.join()
    assert seen == [None]


def test_a_notebook_has_one_line_that_is_written_over(terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []

    class Handle:
        def update(self, html: str) -> None:
            lines.append(html)

    fake: Any = ModuleType("IPython")
    fake.display = ModuleType("IPython.display")
    fake.display.HTML = str
    fake.display.display = lambda html, display_id: Handle()
    monkeypatch.setitem(sys.modules, "IPython", fake)
    monkeypatch.setitem(sys.modules, "IPython.display", fake.display)
    monkeypatch.setattr(progress, "Console", lambda **settings: Console(force_jupyter=True, file=io.StringIO()))
    outer()
    assert lines == [
        "outer …",
        "outer: begin …",
        'outer: middle &lt;b&gt; … 1/2 <progress value="1" max="2"></progress>',
        "",
    ]


@contextmanager
def recorded() -> Iterator[list[str]]:
    steps: list[str] = []
    with telling(lambda step, done, total: steps.append(f"{step} {done}/{total}" if total else step)):
        yield steps


@pytest.mark.slow
def test_what_takes_long_says_its_steps(tmp_path: Path) -> None:
    model, x = TokenNet(depth=5), torch.randn(2, 6, 16)
    with recorded() as steps:
        captured = repl_fx.capture_parts(model, (x,))
    assert steps == ["torch.export, evaluation mode", "torch.export, training mode"]
    with recorded() as steps:
        result = repl_fx.transform(model, (x,), captured=captured)
    assert steps[:3] == ["find repeats", "plan", "replace"]
    with recorded() as steps:
        repl_fx.score_blocks(captured, [torch.randn(8, 6, 16)] * 2)
    assert steps == ["score blocks", "batch 1", "batch 2"]
    with recorded() as steps:
        repl_fx.fit(result, [torch.randn(8, 6, 16)])
    assert steps == ["blocks.1 0/2", "blocks.3 1/2"]
    repl_fx.save(result, tmp_path / "out")
    with recorded() as steps:
        repl_fx.load(tmp_path / "out", model)
    assert steps[:4] == ["read the files", "build the model", "find repeats", "plan"]

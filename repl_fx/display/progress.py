"""The step that a long call is at, where it was made: a bar on a terminal's stderr, a line in the cell of a notebook.

    @shown("fit")                       the outermost call shows what those inside it tell
    def fit(…):
        tell("blocks.3", 2, 12)         fit: blocks.3  ━━━━━╸━━━━━  2/12  0:00:04

A call of several stages names each (`stage`): to the `progress` of its caller, where there is one, else as a step.

Nothing is written where `repl_fx.config.show_progress` says so, where stderr leads to a file or a pipe, and where a
caller takes the stages itself (`progress=`). The command line listens, and shows steps in its own lines.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import wraps
from importlib import import_module
from typing import Any, ParamSpec, TypeAlias, TypeVar

from rich.console import Console

from repl_fx.config import show_progress

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")


# Takes a step: its name, and how many of how many such are done; None where that is not known.
Listener: TypeAlias = Callable[[str, int, int | None], None]
# Takes the name of a stage as it begins.
Progress: TypeAlias = Callable[[str], None]
# Of the call that runs in this thread; other threads have none.
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)
_progress: ContextVar[Progress | None] = ContextVar("progress", default=None)


def tell(step: str, done: int = 0, total: int | None = None) -> None:
    """Say which step begins, to whoever shows the steps of this call."""
    listener = _listener.get()
    if listener is not None:
        listener(step, done, total)


def stage(name: str) -> None:
    """Say which stage begins, to whoever takes the stages of this call; a step where nobody does."""
    (_progress.get() or tell)(name)


@contextmanager
def telling(listener: Listener | None, progress: Progress | None = None) -> Iterator[None]:
    """Let a listener take the steps of the calls inside, which show none then, and a function their stages."""
    tokens = _listener.set(listener), _progress.set(progress)
    try:
        yield
    finally:
        _listener.reset(tokens[0])
        _progress.reset(tokens[1])


def stages_as_steps() -> AbstractContextManager[None]:
    """Let the stages of the calls inside be steps of the stage of now."""
    return telling(_listener.get())


def shown(what: str) -> Callable[[Callable[Parameters, Returned]], Callable[Parameters, Returned]]:
    """Show the steps of a function while it runs, under a word for it; not of one that runs inside another.

    Its `progress`, where it has one, takes the place of that, and is refused where it is no function.
    """

    def decorate(function: Callable[Parameters, Returned]) -> Callable[Parameters, Returned]:
        @wraps(function)
        def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Returned:
            from repl_fx.arguments import require_function

            progress: Any = kwargs.get("progress")
            require_function("progress", progress)
            around = _listener.get()
            if around is not None and progress is None:
                return function(*args, **kwargs)
            showing = _showing(what, silent=progress is not None) if around is None else nullcontext(around)
            with showing as listener, telling(listener, progress):
                return function(*args, **kwargs)

        return call

    return decorate


def _showing(what: str, *, silent: bool) -> AbstractContextManager[Listener]:
    console = None if silent or not show_progress() else Console(stderr=True, markup=False, emoji=False)
    if console is None or not (console.is_jupyter or console.is_terminal):
        return nullcontext(lambda *_: None)
    return _in_a_notebook(what) if console.is_jupyter else _on_a_terminal(what, console)


@contextmanager
def _on_a_terminal(what: str, console: Console) -> Iterator[Listener]:
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.table import Column

    # One line, whatever there is to say: rich cannot take back lines that the terminal has wrapped.
    cropped = Column(no_wrap=True, overflow="ellipsis", ratio=1)
    words = TextColumn("{task.description}", markup=False, table_column=cropped)
    columns = SpinnerColumn(), words, BarColumn(20), TimeElapsedColumn()
    # What the model's own code prints goes where it would go without a bar.
    bar = Progress(*columns, expand=True, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)
    with bar:
        task = bar.add_task(f"{what} …", total=None)

        def listener(step: str, done: int, total: int | None) -> None:
            bar.update(task, description=step_line(what, step, done, total), completed=done, total=total)

        yield listener


@contextmanager
def _in_a_notebook(what: str) -> Iterator[Listener]:
    """One line, written over with each step, without widgets and threads."""
    # Where it is installed, its functions have no types.
    display: Any = import_module("IPython.display")
    shown_text: Any = display.display(display.HTML(""), display_id=True)

    def listener(step: str, done: int, total: int | None) -> None:
        text = html.escape(step_line(what, step, done, total))
        bar = f' <progress value="{done}" max="{total}"></progress>' if total else ""
        shown_text.update(display.HTML(f"{text}{bar}"))

    listener("", 0, None)
    try:
        yield listener
    finally:
        shown_text.update(display.HTML(""))


def step_line(what: str, step: str, done: int, total: int | None) -> str:
    """A step of a call, under the word for the call, and how many of how many are done."""
    return f"{what}{f': {step}' if step else ''} …{f' {done}/{total}' if total else ''}"

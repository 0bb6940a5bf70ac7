"""Every error a user of repl-fx can meet.

Each message is one line that says what was found, where, and what to do next. The command line prints it
without a traceback and exits with code 2 (see `repl_fx.cli`).
"""

from __future__ import annotations

import difflib
import re
import signal
import sysconfig
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from traceback import walk_tb
from types import TracebackType

# What torch writes of an error in a process of a DataLoader, and the lines of its traceback.
_IN_WORKER = "Original Traceback (most recent call last)"
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_INSTALLED = ("site-packages", "dist-packages")
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib")})


# What ends a line, or cannot be printed: names of modules may hold it.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class ReplFxError(Exception):
    """Base of every error that is the caller's to fix, not a defect of repl-fx."""

    def __init__(self, message: str = "") -> None:
        super().__init__(_UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], message))


class BadInput(ReplFxError):
    """An argument, an option or an example input that cannot be used."""


class SourceError(ReplFxError):
    """A model specification that does not lead to a model: no such file, no factory, a factory that raises."""


class CaptureError(ReplFxError):
    """No tracer could take the model.

    Attributes:
        obstacles: one line for each tracer that was tried, in order.
    """

    def __init__(self, model: str, obstacles: Sequence[str], hint: str = "") -> None:
        self.obstacles = tuple(obstacles)
        tried = "; ".join(self.obstacles)
        super().__init__(f"{model} could not be captured: {tried}{f'; {hint}' if hint else ''}")


class NothingToReplace(ReplFxError):
    """No block would be replaced, so the model would come back unchanged.

    Attributes:
        reasons: one line for each repeat or block that was refused; empty when nothing repeats at all.
    """

    def __init__(self, found: str, reasons: Iterable[str] = ()) -> None:
        self.reasons = tuple(reasons)
        # Blocks of a model of a hundred layers mostly stay for one reason.
        why = f": {listed(self.reasons, 6, '; ')}" if self.reasons else ""
        super().__init__(f"nothing to replace: {found}{why}")


class UnknownSurrogate(ReplFxError):
    """A surrogate key that nobody registered."""

    def __init__(self, key: str, known: Collection[str]) -> None:
        super().__init__(f"unknown surrogate {key!r}{close_matches(key, known)}; known are {', '.join(sorted(known))}")


class WeightsChanged(ReplFxError):
    """Weights changed where synthesised ones were still in use (see `repl_fx.shared_synthesis`)."""


class UnknownBlock(ReplFxError):
    """A block that the model does not have."""

    def __init__(self, block: str, known: Sequence[str]) -> None:
        every = listed(known, 6) if known else "none: nothing repeats in this model"
        super().__init__(f"no block {block!r}{close_matches(block, known)}; the blocks are {every}")


class PlanMismatch(ReplFxError):
    """A plan that does not fit the model it is applied to.

    Attributes:
        structure: the text of that model, by lines (`repl_fx.tracing.fingerprint`), where the plan's is another.
    """

    def __init__(self, message: str, structure: Sequence[str] = ()) -> None:
        self.structure = tuple(structure)
        super().__init__(message)


class ArtifactError(ReplFxError):
    """A directory that is no artifact, is damaged, was written by a newer repl-fx, or no longer fits its model."""


class OutputError(ReplFxError):
    """A place that cannot be written: not a directory, not empty, no permission, no space."""


class NotFoldable(ReplFxError):
    """A synthesis whose weights depend on an input of the model."""


class ExportError(ReplFxError):
    """A graph that the ONNX exporter refuses, or a file that is no valid ONNX model."""


class CallRefused(ReplFxError, RuntimeError):
    """A call of a model in place that a surrogate cannot answer: other arguments, other sizes, or another order."""


class Untraceable(Exception):
    """A forward does what the graph of a tracer cannot hold; another tracer, or a smaller module, may do.

    Raised while a model is traced. `repl_fx.capture` puts it into a `CaptureError`.
    """


class Stopped(BaseException):
    """The end of this process by a signal, such as SIGTERM; what runs is left as by Ctrl-C.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(f"ended by {signal.Signals(number).name}")


class ForeignError(Exception):
    """The exception of code that is not repl-fx's: of a model, of torch's exporter, of an installed package.

    Attributes:
        problem: the exception itself.
    """

    def __init__(self, problem: Exception) -> None:
        self.problem = problem
        super().__init__(one_line(problem))


@contextmanager
def foreign_code(
    refusal: Callable[[Exception], Exception] = ForeignError, *, passing: type[Exception] | tuple[()] = ()
) -> Iterator[None]:
    """Run code that is not repl-fx's, and nothing else; what fails outside of it is a defect of repl-fx.

    Args:
        refusal: the error to raise for an exception of that code.
        passing: the class of those that are raised as they are.

    Raises:
        ForeignError: whatever that code raised. An assertion of repl-fx that fails meanwhile stays one.
    """
    try:
        yield
    except ForeignError as failed:
        if refusal is ForeignError:
            raise
        if isinstance(failed.problem, passing):
            raise failed.problem from None
        raise refusal(failed.problem) from failed.problem
    except Exception as problem:
        # What a model, or a package that builds one, may raise has no common base.
        ours = isinstance(problem, AssertionError) and _raised_here(problem.__traceback__)
        if ours or isinstance(problem, passing):
            raise
        raise refusal(problem) from problem


def is_ours(module: object) -> bool:
    """Tell whether a module is repl-fx's, by its name."""
    return str(module).startswith("repl_fx.")


def _raised_here(trace: TracebackType | None) -> bool:
    """Tell whether the innermost frame of a traceback is repl-fx's."""
    *_, (frame, _) = walk_tb(trace)
    return is_ours(frame.f_globals.get("__name__"))


class BrokenGraph(Exception):
    """A pass left the graph in a state that breaks the contract of the normal form: a defect of that pass.

    Raised by `repl_fx.passes.check_graph` and therefore not a `ReplFxError`: the user cannot fix it.
    """


def users_place(problem: BaseException) -> tuple[str, int] | None:
    """File and line of the user's code that an error comes from.

    The innermost frame counts that is not a library's; None where it is repl-fx's own, or there is none.
    """
    for frame, line in reversed(list(walk_tb(problem.__traceback__))):
        if is_ours(frame.f_globals.get("__name__")):
            return None
        if _is_own(frame.f_code.co_filename):
            return frame.f_code.co_filename, line
    return None


def broken_package(problem: BaseException | None) -> tuple[str, BaseException] | None:
    """The installed package in whose import an error began, and that error; None where none was being imported.

    A package that another one imports is the broken one; libraries that import late hide it in `__cause__`.
    """
    found = None
    while problem is not None:
        for frame, _ in walk_tb(problem.__traceback__):
            package = str(frame.f_globals.get("__name__")).partition(".")[0]
            installed = any(part in frame.f_code.co_filename for part in _INSTALLED)
            if installed and frame.f_code.co_name == "<module>" and package not in ("repl_fx", "__main__"):
                found = package, problem
        problem = problem.__cause__
    return found


def not_importable(problem: BaseException) -> str | None:
    """The line for an error in the import of an installed package; None for any other."""
    broken = broken_package(problem)
    if broken is None:
        return None
    return f"{broken[0]} cannot be imported ({one_line(broken[1])}); `repl-fx doctor` names the command that mends it"


def not_ours(problem: BaseException) -> str | None:
    """The line for an error that is no defect of repl-fx, with what there is to do next; None for any other."""
    if isinstance(problem, ReplFxError | Stopped):
        line = " ".join(str(problem).split()) or type(problem).__name__
    elif isinstance(problem, Exception) and (broken := not_importable(problem)) is not None:
        line = broken
    elif isinstance(problem, Exception) and (_IN_WORKER in str(problem) or users_place(problem) is not None):
        line = f"code of yours raised {told(problem)}"
    else:
        return None
    return with_notes(line, problem)


def with_notes(line: str, problem: BaseException) -> str:
    """A line with the last note that an error got on its way (`BaseException.add_note`)."""
    notes = getattr(problem, "__notes__", [])
    return f"{line}; {notes[-1]}" if notes and "--resume" not in line else line


def told(problem: BaseException) -> str:
    """An error of a user's code in one line, with its place; that of a process of a DataLoader as it was there."""
    said, place, text = one_line(problem), users_place(problem), str(problem)
    if _IN_WORKER in text:
        said = [line.strip() for line in text.splitlines() if line.strip()][-1]
        found = [(file, int(line)) for file, line in _FRAME.findall(text) if _is_own(file)]
        place = found[-1] if found else None
    return said if place is None else "{} ({}, line {})".format(said, *place)


def _is_own(file: str) -> bool:
    """Tell whether a file is code that somebody wrote for this model: not installed, nor made while it ran."""
    inside = any(part in file for part in _INSTALLED)
    return not (inside or file.startswith(("<", *_LIBRARIES)))


def one_line(problem: BaseException) -> str:
    """Any error in one line, by its class and the first line of its message that says something."""
    line, kind = first_line(problem), type(problem).__name__
    return kind if line == kind else f"{kind}: {line}"


def close_matches(name: object, known: Iterable[str]) -> str:
    """`"; did you mean a, b?"`, or nothing where no known name is close, in capitals or not."""
    names = {one.lower(): one for one in known}
    close = difflib.get_close_matches(str(name).lower(), list(names), n=3, cutoff=0.6)
    return f"; did you mean {', '.join(names[one] for one in close)}?" if close else ""


def listed(names: Iterable[object], shown: int = 3, separator: str = ", ") -> str:
    """The first names, and the number of the others."""
    names = list(names)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{separator.join(map(str, names[:shown]))}{more}"


def first_line(problem: BaseException) -> str:
    """The first line of an error's message that says something; its class where none does."""
    # Without terminal colours.
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(problem)).splitlines()
    return next((line.strip() for line in lines if line.strip()), type(problem).__name__)


@contextmanager
def needing(extra: str, function: str) -> Iterator[None]:
    """Import what needs the libraries of an extra, such as `train`; a function or command without them gets a line."""
    try:
        yield
    except ModuleNotFoundError as missing:
        if str(missing.name).startswith("repl_fx"):
            raise
        raise BadInput(f"{function} needs {missing.name}; pip install 'repl-fx[{extra}]'") from missing

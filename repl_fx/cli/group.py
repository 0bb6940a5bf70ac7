"""From an exception to one line on stderr and an exit code."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import typer
from typer.core import TyperGroup

from repl_fx.cli.completion import prepare_completion
from repl_fx.cli.help import OPTIONS, write_options, write_sections
from repl_fx.errors import ReplFxError, Stopped, close_matches, not_ours, users_place, with_notes

DONE, FAILED, BAD, DEFECT, INTERRUPTED, CLOSED = 0, 1, 2, 70, 130, 141
# Added to the number of the signal that ended a command, as shells do.
SIGNALLED = 128


# Messages of torch about a tensor that no memory holds; on a CPU it raises a plain RuntimeError.
_TOO_LARGE = re.compile(r"can't allocate memory|not enough memory|Storage size calculation overflowed")


class CheckFailed(Exception):
    """A check that a command made says no: not an error of the user's, and exit code 1."""


class Commands(TyperGroup):
    """A group of commands that ends every error in one line on stderr and an exit code (see `repl_fx.cli`).

    Its help lists the commands of a section (`rich_help_panel`) together.
    """

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run a command; exits in standalone mode, returns the exit code otherwise."""
        completing = prepare_completion(os.environ)
        given = args[0] if args else extra.get("args") or sys.argv[1:]
        try:
            # However it was started: help and errors name the command that a user types.
            extra["prog_name"] = extra.get("prog_name") or "repl-fx"
            main: Any = super().main
            result = main(*args, standalone_mode=False, **extra)
            # Commands return None; typer returns the code of `typer.Exit`.
            code = result if isinstance(result, int) else DONE
        except (KeyboardInterrupt, typer.Abort) as error:
            code = _report(error.__cause__ or error)
        except SystemExit as error:
            code = _code_of_exit(error, completing)
        except BaseException as error:
            code = _report(error)
            # A command that did not begin; one that did tells its own errors (see `repl_fx.cli.common.running`).
            if hasattr(error, "format_message") and "--json" in given:
                line, _ = explain(error)
                print(json.dumps({"error": line, "exit_code": code}, indent=2))
        if standalone_mode:
            sys.exit(code)
        return code

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command of a name."""
        name = args[0]
        if self.get_command(ctx, name) is None and not (ctx.resilient_parsing or name.startswith("-")):
            ctx.fail(f"No such command {name!r}{close_matches(name, self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the options of the group."""
        try:
            return super().parse_args(ctx, args)
        except SystemExit as end:
            # typer's options for completion end so.
            raise typer.Exit(int(end.code or DONE)) from None

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options, and the commands in their sections."""
        write_options(self, ctx, formatter)
        sections: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            title = command.rich_help_panel or OPTIONS
            sections.setdefault(title, []).append((name, command.get_short_help_str(formatter.width)))
        write_sections(sections, formatter)


@contextlib.contextmanager
def stopping() -> Iterator[Callable[[], None]]:
    """Let SIGTERM and SIGHUP end a command as Ctrl-C does, where nobody has another use for them (nohup has).

    Gives a function that ends the command where what ran has swallowed that, as imports in C do.
    """
    mine, tell_lost = os.getpid(), sys.unraisablehook
    before: dict[int, Any] = dict.fromkeys((signal.SIGTERM, signal.SIGHUP), signal.SIG_DFL)
    before[signal.SIGINT] = signal.default_int_handler
    taken = [number for number, handler in before.items() if signal.getsignal(number) is handler]
    noted: list[BaseException] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != mine:
            # A process that was forked is no command.
            signal.signal(number, before[number])
            os.kill(os.getpid(), number)
        elif getattr(sys.modules.get("repl_fx._torch"), "may_not_raise", bool)(frame):
            again(number)
        else:
            if number != signal.SIGINT:
                # A second one ends the process at once.
                signal.signal(number, signal.SIG_DFL)
            noted.append(KeyboardInterrupt() if number == signal.SIGINT else Stopped(number))
            raise noted[-1]

    def again(number: int) -> None:
        signal.signal(number, stop)
        timer = threading.Timer(0.01, os.kill, (mine, number))
        timer.daemon = True
        timer.start()

    def lost(problem: Any) -> None:
        # In a destructor, such as that of a weak reference, which no exception leaves.
        if problem.exc_value in noted:
            again(getattr(problem.exc_value, "number", signal.SIGINT))
        else:
            tell_lost(problem)

    def heed() -> None:
        if noted:
            raise noted[-1]

    if threading.current_thread() is not threading.main_thread():
        taken = []
    for number in taken:
        signal.signal(number, stop)
    sys.unraisablehook = lost
    try:
        yield heed
    except typer.Exit:
        raise
    except Exception:
        # Such as of a library whose import was cut short.
        heed()
        raise
    finally:
        sys.unraisablehook = tell_lost
        for number in taken:
            signal.signal(number, before[number])


def _code_of_exit(error: SystemExit, completing: bool) -> int:
    """The exit code where something has ended the process."""
    # Nobody reads stdout any more, of a command or of a help page, which typer ends itself.
    if error.code == CLOSED or isinstance(error.__context__, BrokenPipeError):
        return CLOSED
    # Any other is the model's own, and must not pass for the end of the command.
    return int(error.code or DONE) if completing else _report(error)


def _report(error: BaseException) -> int:
    message, code = explain(error)
    rank = os.environ.get("RANK")
    # Of several processes that are interrupted the first one tells; of those that are ended, who ended them.
    if rank is None or not isinstance(error, Stopped if rank == "0" else Stopped | KeyboardInterrupt):
        print(f"repl-fx: error: {message}", file=sys.stderr)
    return code


def explain(error: Any) -> tuple[str, int]:
    """The one line for an exception, and its exit code."""
    # Usage errors have this method. Their class is click's or, in later versions, that of typer's own copy of click.
    if hasattr(error, "format_message"):
        return _usage(error), BAD
    line = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, CheckFailed):
        return line, FAILED
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return with_notes("interrupted", error), INTERRUPTED
    said = not_ours(error)
    if isinstance(error, Stopped):
        return str(said), SIGNALLED + error.number
    if isinstance(error, ReplFxError):
        return str(said), BAD
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" at {error.filename}" if error.filename else ""
        return with_notes(f"no space left{where}; free some, or choose another place with -o", error), BAD
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or _TOO_LARGE.search(line):
        smaller = "give smaller inputs (--input-shape), batches (--batch-size), or another --device"
        return with_notes(f"not enough memory ({line[:200]}); {smaller}", error), BAD
    if not isinstance(error, Exception):
        place = users_place(error)
        where = " ({}, line {})".format(*place) if place else ""
        return f"code of yours ended the command with {type(error).__name__}: {line[:300]}{where}", BAD
    if said is not None:
        return said, BAD
    if isinstance(error, PermissionError) and error.filename:
        return f"no permission for {error.filename}; ask its owner for it, or choose another place", BAD
    if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        return f"{error.filename} cannot be reached: {error.strerror}; give another path", BAD
    return (
        f"this is a defect of repl-fx: {type(error).__name__}: {line[:300]}; -v shows where, please report it",
        DEFECT,
    )


def _usage(error: Any) -> str:
    """The line for a command that was called in a wrong way."""
    context = getattr(error, "ctx", None)
    # What reads values for typer puts its own words before the complaint.
    line = " ".join(error.format_message().split()).rstrip(".").replace("Value error, ", "", 1)
    if context is None:
        return f"{line}; see repl-fx --help"
    if hasattr(error, "possibilities"):
        known = [option for param in context.command.params for option in (*param.opts, *param.secondary_opts)]
        line = f"{error.message}{close_matches(error.option_name, known)}"
    return f"{line}; see {context.command_path} --help"

"""Shared by the commands: options, the terminal they write to, and reading a SPEC."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import json
import logging
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.console import Console, RenderableType
from rich.status import Status

from repl_fx.cli.completion import complete_artifact, complete_model, complete_model_or_artifact
from repl_fx.cli.flags import Flags, SpecFlags, flags_of
from repl_fx.cli.group import CLOSED, CheckFailed, explain, stopping
from repl_fx.display.numbers import several
from repl_fx.display.progress import step_line, telling
from repl_fx.environment.files import write_whole as write_whole, writing
from repl_fx.errors import BadInput, OutputError, needing as needing
from repl_fx.planning.settings import ModelSettings, flag_of, given_among
from repl_fx.running.collection import imports_passed_over
from repl_fx.running.meanwhile import set_by

if TYPE_CHECKING:
    from torch import nn

    from repl_fx.artifact import Artifact
    from repl_fx.costs.counted import Costs
    from repl_fx.export.verification import Verification
    from repl_fx.running.example_inputs import ExampleInputs
    from repl_fx.sources import Purpose
    from repl_fx.tracing.parts.capture_parts import CapturedParts
    from repl_fx.tracing.parts.origin import Preprocessing


def argument(metavar: str, text: str, completing: Callable[[str], list[str]] | None = None) -> Any:
    """An argument of a command with its line of help."""
    return typer.Argument(metavar=metavar, help=text, show_default=False, autocompletion=completing)


_SPEC = "The model: model.py, model.py:FACTORY, timm:NAME, torchvision:NAME, hf:TYPE, hf:DIR or hf:CONFIG."
SpecArgument = Annotated[str, argument("SPEC", _SPEC, complete_model)]
AnySpecArgument = Annotated[
    str, argument("SPEC|DIR", "A model, or a directory that transform wrote.", complete_model_or_artifact)
]
DirectoryArgument = Annotated[Path, argument("DIR", "A directory that transform wrote.", complete_artifact)]
# A stage that is over sooner needs no line of its own.
_SLOW = 1.0


class Terminal:
    """The terminal of a command: results to stdout, as JSON only where that is wanted, and progress to stderr."""

    def __init__(self, stdout: TextIO, as_json: bool, verbose: bool, quiet: bool, imported: Callable[[], None]) -> None:
        self.as_json = as_json
        self.verbose = verbose
        self.quiet = quiet
        self.stdout = stdout
        self._out = _Console(stdout)
        self._err = _Console(sys.stderr)
        self._imported = imported
        self._stage: str | None = None
        self._began = 0.0
        self._status: Status | None = None
        self._after_line = False
        self._told = False
        # Ends the command where it was stopped, and goes on.
        self.heed: Callable[[], None] = lambda: None

    @property
    def descriptor(self) -> int | None:
        """The descriptor for the document of the command's processes; None for the one that this process writes to."""
        try:
            return self.stdout.fileno() if self.as_json else None
        except OSError:
            # No file: nothing but Python can write to it.
            return None

    def stage(self, name: str) -> None:
        """Begin a stage, and end the one before."""
        self.heed()
        self._imported()
        self.end_stage()
        self._stage, self._began = name, time.monotonic()
        if not self.quiet and self._err.is_terminal:
            self._status = self._err.status(f"{name} …")
            self._status.start()

    def step(self, step: str, done: int, total: int | None) -> None:
        """Show the step that a stage is at, while it lasts."""
        self.heed()
        if self._status is not None:
            line = step_line(str(self._stage), step, done, total)
            # Cropped: rich cannot take back lines that the terminal has wrapped.
            self._status.update(line if len(line) < (room := self._err.width - 2) else f"{line[: room - 1]}…")

    def end_stage(self) -> None:
        """End the stage; one that took long gets a line on stderr."""
        name, self._stage = self._stage, None
        if self._status is not None:
            self._status.stop()
            self._status = None
        took = time.monotonic() - self._began
        if name is not None and not self.quiet and (self.verbose or took > _SLOW):
            self._err.print(f"{name} … {took:.1f} s")

    def show(self, *results: RenderableType) -> None:
        """Show lines and tables, with an empty line around each table; not where JSON is wanted."""
        self.end_stage()
        if self.as_json:
            return
        for result in results:
            if isinstance(result, str):
                # As it is: a path that is broken over two lines cannot be copied.
                self._out.print(result, soft_wrap=True)
            else:
                if self._after_line:
                    self._out.print()
                self._out.print(result)
                self._out.print()
            self._after_line = isinstance(result, str)

    def document(self, document: dict[str, Any]) -> None:
        """Write the one JSON document, where JSON is wanted."""
        self.end_stage()
        if self.as_json:
            print(json.dumps(document, indent=2, allow_nan=False), file=self.stdout, flush=True)
            self._told = True

    def failed(self, line: str, code: int) -> None:
        """Write the error in the place of the document, where JSON is wanted and none was written."""
        if not self._told:
            self.document({"error": line, "exit_code": code})


def command(
    own: type[Flags], *settings: type, without: Collection[str] = (), defaults: Mapping[str, Any] = MappingProxyType({})
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command of a function of a terminal, flags, arguments, and `**given`: the settings that were given.

    Args:
        own: the class of its own flags.
        settings, without, defaults: see `flags_of`.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(**given: Any) -> None:
            flags = own(**given_among({name: given.pop(name, None) for name in own.__struct_fields__}))
            with running(flags.as_json, flags.verbose, flags.quiet) as terminal:
                function(terminal, flags, **given)

        signature = inspect.signature(function, eval_str=True)
        arguments = [one for one in list(signature.parameters.values())[2:] if one.kind is not one.VAR_KEYWORD]
        arguments += flags_of(own, *settings, without=without, defaults=defaults)
        run.__signature__ = signature.replace(parameters=arguments)  # type: ignore[attr-defined]
        return run

    return decorate


@contextlib.contextmanager
def running(as_json: bool, verbose: bool, quiet: bool) -> Iterator[Terminal]:
    """The surroundings of a command: what libraries warn and log is not shown unless `verbose`.

    With `as_json`, what the model's own code prints goes to stderr, also where it writes to the file descriptor itself.
    """
    # Of several processes the first one shows what there is to show.
    quiet = quiet or os.environ.get("RANK", "0") != "0"
    with contextlib.ExitStack() as stack:
        if not verbose:
            stack.enter_context(_without_noise())
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A name that the terminal cannot write is no reason to fail.
            sys.stdout.reconfigure(errors="replace")
        results = stack.enter_context(_results_alone(sys.stdout)) if as_json else sys.stdout
        terminal = Terminal(results, as_json, verbose, quiet, stack.enter_context(imports_passed_over()))
        try:
            with _failing(terminal), stopping() as terminal.heed, telling(terminal.step, terminal.stage):
                _require_working_directory()
                yield terminal
        except BrokenPipeError:
            # Who reads stdout has seen enough; what is still in its buffer must not fail once more at exit.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for stream in filter(None, (results, sys.__stdout__)):
                os.dup2(nowhere, stream.fileno())
            raise typer.Exit(CLOSED) from None
        finally:
            terminal.end_stage()


def _require_working_directory() -> None:
    """Refuse a working directory that was removed: libraries of torch end the process there."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise BadInput("the working directory was removed; go to one that is there") from None


@contextlib.contextmanager
def _failing(terminal: Terminal) -> Iterator[None]:
    """Show the traceback of an error, where it is wanted, and tell those who read JSON."""
    try:
        yield
    except (typer.Exit, BrokenPipeError):
        raise
    except BaseException as error:
        terminal.end_stage()
        if terminal.verbose and isinstance(error, Exception):
            traceback.print_exc()
        if not isinstance(error, SystemExit) or error.code != CLOSED:
            terminal.failed(*explain(error))
        if isinstance(error, KeyboardInterrupt):
            # typer would end in silence.
            raise typer.Abort from error
        raise


@contextlib.contextmanager
def _results_alone(stdout: TextIO) -> Iterator[TextIO]:
    """A stream to where stdout leads, while all else that is written there goes to stderr."""
    with contextlib.redirect_stdout(sys.stderr):
        try:
            number, errors = stdout.fileno(), sys.stderr.fileno()
        except OSError:
            # No file: nothing but Python can write to it.
            yield stdout
            return
        stdout.flush()
        with os.fdopen(os.dup(number), "w", encoding=stdout.encoding, errors="replace") as results:
            os.dup2(errors, number)
            try:
                yield results
            finally:
                os.dup2(results.fileno(), number)


@contextlib.contextmanager
def _without_noise() -> Iterator[None]:
    # Read when transformers is imported; its progress bars are no log messages.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logs = set_by(logging.disable, logging.WARNING, logging.root.manager.disable)
    with logs, warnings.catch_warnings(action="ignore"):
        yield


class _Console(Console):
    def __init__(self, file: TextIO) -> None:
        # Names may hold brackets and colons, which rich would read as markup and emoji.
        super().__init__(file=file, markup=False, emoji=False, highlight=False)

    def on_broken_pipe(self) -> None:
        """End with the code for it; rich's own is that of a check that failed."""
        try:
            super().on_broken_pipe()
        except SystemExit:
            raise SystemExit(CLOSED) from None


@dataclass(frozen=True, eq=False)
class Target:
    """The model or the artifact that a `SPEC|DIR` leads to.

    Attributes:
        title: one line that says what it is.
        notes: lines on it, such as which weights are random.
        fixed: names of dimensions that are to stay as in the example.
        preprocessing: of pictures, where the weights come with it.
    """

    title: str
    notes: tuple[str, ...]
    module: nn.Module
    inputs: ExampleInputs
    artifact: Artifact | None
    fixed: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None


# Of an artifact, and why it takes none of these settings of a model.
_BROUGHT = {
    "input_shape": " and brings its own example inputs",
    "weights": " and brings its own weights",
    "pretrained": " and brings its own weights",
    "arg": " of a model that is built already",
    "fixed": ", whose sizes are fixed as it was made",
}


def load_target(
    spec: str,
    flags: SpecFlags,
    settings: ModelSettings,
    device: str | None = None,
    purpose: Purpose | None = None,
) -> Target:
    """Load a model by its specification, or an artifact by its directory; to that device by default of the flags."""
    from repl_fx.sources import load_source

    given: Any = {"trust_remote_code": flags.trust_remote_code}
    where = device or flags.device
    if not Path(spec).is_dir():
        if flags.model is not None:
            raise BadInput(f"--model names the model of an artifact, and {spec} is no directory; leave out --model")
        options = {**settings.source_options(), "purpose": purpose}
        source = load_source(spec, seed=flags.seed, device=where, **given, **options)
        known = str(source), source.notes, source.model, source.inputs, None
        return Target(*known, settings.fixed_names, source.preprocessing)
    for name, why in _BROUGHT.items():
        if getattr(settings, name) not in (None, False, ()):
            raise BadInput(f"{spec} is an artifact{why}; leave out {flag_of(name)}")
    from repl_fx.artifact import load_artifact
    from repl_fx.graph.state import parameter_count

    artifact = load_artifact(spec, flags.model, **given)
    made_of = artifact.manifest.model.kind if artifact.manifest.model else "model"
    parameters = parameter_count(artifact.module)
    title = f"{spec}: rewritten {made_of}, {parameters:,} parameters"
    return Target(title, (), artifact.module.to(where), artifact.inputs, artifact)


def require_no_plan(artifact: str, given: Mapping[str, Any]) -> None:
    """Refuse flags that say which blocks of an artifact go: they are gone.

    Args:
        given: the flags of `PlanSettings`; those of the model itself are for `load_target`.
    """
    chosen = [flag_of(name) for name in given_among(given) if name not in _BROUGHT]
    if chosen:
        raise BadInput(f"{artifact} is an artifact and has its plan; leave out {', '.join(chosen)}")


def note_lines(notes: Sequence[str]) -> list[RenderableType]:
    """Notes as lines of their own."""
    return [f"note: {note}" for note in notes]


def data_lines(changes: Sequence[str]) -> list[RenderableType]:
    """Changes that data go through, as lines of their own."""
    return [f"data: {change}" for change in changes]


def captured_lines(title: str, captured: CapturedParts) -> list[RenderableType]:
    """The lines on a model and its capture: one, and a table where it was captured in parts."""
    from repl_fx.reporting.tables import parts_table

    if captured.whole:
        return [f"{title}, captured by {captured.parts[0].graph_module.meta['capture'].tracer}"]
    number = several(len(captured.parts), "part")
    return [f"{title}, captured in {number}; the rest stays eager", parts_table(captured)]


def show_verified(terminal: Terminal, results: Mapping[str, Verification]) -> None:
    """Say of each part's file, by the part's path, that it was verified.

    Raises:
        CheckFailed: one computes something else.
    """
    for path, result in results.items():
        summary = f"{path}: {result.summary()}".removeprefix(": ")
        if not result:
            raise CheckFailed(summary)
        terminal.show(summary)


def costs_lines(before: Costs, after: Costs | None = None) -> list[RenderableType]:
    """The table of costs, and the reason why some are unknown."""
    from repl_fx.reporting.tables import costs_table

    why = [f"costs are unknown, as the model does not run on shapes alone: {before.unknown}"] if before.unknown else []
    return [costs_table(before, after), *why]


def _files_of(read: str | Path) -> list[Path]:
    """The files of an artifact, or what may be the file of a model: `model.py` of `model.py:FACTORY`."""
    from repl_fx.artifact.manifest import MANIFEST, read_manifest

    if Path(read).is_dir():
        return [Path(read, name) for name in (MANIFEST, *read_manifest(Path(read)).files)]
    return [Path(read), Path(str(read).rpartition(":")[0])]


def require_free_file(file: Path, *, force: bool, read: str | Path) -> None:
    """Refuse a file that cannot be written, before any work is done; one that exists, unless `force`.

    Args:
        read: the model or the artifact that the command reads, of which it replaces nothing.
    """
    if file.is_dir():
        raise OutputError(f"{file} is a directory; give the name of a file, not of its directory")
    if file.exists() and not force:
        raise OutputError(f"{file} exists; choose another place with -o, or replace it with --force")
    if file.exists() and any(path.exists() and file.samefile(path) for path in _files_of(read)):
        raise OutputError(f"{file} is a file of {read}, which is read; choose another place with -o")
    if not file.parent.is_dir():
        raise OutputError(f"{file} cannot be written: there is no directory {file.parent}")
    # Permissions alone do not tell: a file system may be read-only.
    with writing(file), tempfile.TemporaryFile(dir=file.parent):
        pass

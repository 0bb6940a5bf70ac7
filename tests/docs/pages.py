"""The documentation's pages, and what runs their code blocks.

sybil parses them: it takes any language and any marker by a small parser, keeps one namespace for a page, and names
page and line of what fails. mktestdocs knows Python and bash alone; pytest-examples runs each block of Python by
itself.

    ```python                   runs, in the namespace of the page
    ```python title="net.py"    is written to that file, in the directory of the page
    ```sh                       runs: commands of repl-fx, and `python FILE`, in this process or copies of one
    ```text title="Output"      lines that the block before has to have printed, in this order; … stands for anything

A comment before a block says how it runs:

    <!-- smaller: OLD => NEW; … -->     with other words, and at a few steps (`_FEWER`)
    <!-- not run: REASON -->            not at all

Then Python compiles, commands are there, and their options parse, as they stand. Files of the reader that a command
names are made (`readers_files`); `<!-- invisible-code-block: python … -->` makes others. A page begins in an empty
directory.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec.yaml
import typer
from sybil import Example, Region, Sybil
from sybil.document import Document
from sybil.parsers.markdown.lexers import DirectiveInHTMLCommentLexer, RawFencedCodeBlockLexer

from repl_fx.cli import app
from tests.captures import traced_alone
from tests.docs.readers_files import ReadersFiles, run_command
from tests.training.forks import LIBRARIES, Forks, Request

ROOT = Path(__file__).parents[2]
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
)

_FENCE = RawFencedCodeBlockLexer(re.compile(r"(?P<language>[^\s]*)(?P<info>[^\n]*)$\n", re.MULTILINE))
_MARKER = DirectiveInHTMLCommentLexer(r"not run|smaller")
_HIDDEN = DirectiveInHTMLCommentLexer(r"invisible-code-block", r"python")
# Flags of commands in blocks that are run smaller, where they do not say otherwise.
_FEWER = {
    "train": {"--steps": "2", "--batch-size": "8"},
    "heal": {"--steps": "2", "--batch-size": "8"},
    "compress": {"--steps": "2", "--samples": "8", "--batch-size": "8"},
    "bench": {"--rounds": "1", "--warm-up": "0"},
}


@dataclass
class PageRun:
    """One page while its blocks run: what they have printed, and what holds for the next.

    Args:
        directory: an empty one, which has to be the working directory.
        files: makes what a reader brings along.
        at_end: to be closed behind the last block.
    """

    directory: Path
    files: ReadersFiles
    printed: str | None = ""
    marker: tuple[str, str] = ("", "")
    commands: int = 0
    not_run: int = 0
    written: list[str] = field(default_factory=list)
    at_end: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def blocks_of(self, page: Path) -> Iterator[Example]:
        """The blocks and markers of a page, to be evaluated in order."""
        return Sybil([self._parse]).parse(page).examples()

    def _parse(self, document: Document) -> Iterator[Region]:
        for lexer, evaluate in ((_MARKER, self._mark), (_HIDDEN, self._run_python), (_FENCE, self._evaluate)):
            for region in lexer(document):
                yield Region(region.start, region.end, region.lexemes, evaluate)

    def _mark(self, example: Example) -> None:
        self.marker = example.parsed["directive"], example.parsed["arguments"].strip()
        assert self.marker[0] != "not run" or self.marker[1], "a block that is not run needs a reason"
        self.not_run += self.marker[0] == "not run"

    def _evaluate(self, example: Example) -> None:
        language, source = example.parsed["language"], str(example.parsed["source"])
        titled = re.search(r'title="([^"]+)"', example.parsed["info"])
        title = titled[1] if titled else ""
        (how, said), self.marker = self.marker, ("", "")
        runs = how != "not run"
        if language == "python" and (title or not runs):
            compile(source, title or example.path, "exec")
            if title:
                self._write(title, source)
        elif language == "python":
            self._run_python(example, said)
        elif language == "sh":
            commands = shell_commands(source)
            assert commands, "a block of commands has none"
            for command in commands if how else ():
                self._check(command)
            if runs:
                commands = [_fewer(command) for command in shell_commands(replaced(source, said))] if how else commands
                self.printed = "".join(map(self._run, commands))
            else:
                self.printed = None
        elif language == "text" and title == "Output":
            missing = None if self.printed is None else missing_line(source, self.printed)
            assert missing is None, f"not printed: {missing}\nbut\n{self.printed}"
        else:
            check_data(language, source)
            if title:
                self._write(title, source)

    def _write(self, name: str, source: str) -> None:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        self.written.append(name)

    def _run_python(self, example: Example, said: str = "") -> None:
        # The lines of a traceback are those of the page.
        source = "\n" * (example.line + example.parsed["source"].line_offset) + replaced(example.parsed["source"], said)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(source, example.path, "exec"), example.namespace)
        self.printed = printed.getvalue()

    def _run(self, command: list[str]) -> str:
        self.commands += 1
        self.files.bring(command)
        if command[0] == "torchrun" or (command[0] == "repl-fx" and "--devices" in command):
            return self._run_several(command)
        if command[0] == "repl-fx":
            arguments, file = _split(command[1:], ">")
            done = run_command(arguments)
            if file:
                self._write(file[0], done.stdout)
            return str(done.output)
        if command[0] == "pip":
            # Installing is not for a test.
            self._check(command)
            return ""
        assert command[0] == "python", f"cannot be run here: {shlex.join(command)}"
        is_module = command[1] == "-m"
        with contextlib.redirect_stdout(io.StringIO()) as printed, _arguments(command[1 + is_module :]):
            try:
                if is_module:
                    with _not_imported(command[2]), traced_alone():
                        runpy.run_module(command[2], run_name="__main__", alter_sys=True)
                else:
                    runpy.run_path(self._file(command[1]), run_name="__main__")
            except SystemExit as ended:
                assert not ended.code, shlex.join(command)
        return printed.getvalue()

    def _run_several(self, command: list[str]) -> str:
        """What a command prints that starts others: in a copy of a process that has imported what all of them do."""
        module = {"repl-fx": "repl_fx", "torchrun": "torch.distributed.run"}[command[0]]
        # Beside it is what is printed.
        script = self.directory.parent / "several" / "script.py"
        script.parent.mkdir(exist_ok=True)
        script.write_text(
            f"import os, runpy; os.chdir({str(self.directory)!r}); runpy.run_module({module!r}, run_name='__main__')"
        )
        ((code, out, err),) = self._forks.ended(Request(str(script), command[1:], limit=300))
        assert code == 0, f"{shlex.join(command)}\n{err}"
        return out

    @cached_property
    def _forks(self) -> Forks:
        return self.at_end.enter_context(Forks("repl_fx.cli.group", "torch.distributed.run", *LIBRARIES))

    def _file(self, name: str) -> str:
        """A file of the page, or of the repository."""
        found = [path for path in (self.directory / name, ROOT / name) if path.is_file()]
        assert found, f"there is no {name}"
        return str(found[0])

    def _check(self, command: list[str]) -> None:
        program, *arguments = (word.removeprefix(".venv/bin/") for word in command)
        if program == "repl-fx":
            check_options(arguments)
        elif "repl_fx" in arguments and program in ("python", "torchrun"):
            check_options(arguments[arguments.index("repl_fx") + 1 :])
        elif program == "python" and arguments[0] == "-m":
            assert (ROOT / (arguments[1].replace(".", "/") + ".py")).is_file(), arguments[1]
        elif program == "python":
            self._file(arguments[0])
        elif program == "make":
            targets = set(re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
            unknown = {word for word in arguments if "=" not in word} - targets
            assert not unknown, f"make knows no {unknown}"
        elif program == "pip":
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            named = {extra for names in re.findall(r"\[([\w,]+)\]", " ".join(arguments)) for extra in names.split(",")}
            assert named <= set(extras), f"no extra {named - set(extras)}"
        else:
            assert program in ("pre-commit",), f"no check for {shlex.join(command)}"


def replaced(source: str, said: str) -> str:
    """A block with other words: `OLD => NEW; …`, each of which it has to have."""
    for pair in filter(None, said.split(";")):
        old, arrow, new = (part.strip() for part in pair.partition("=>"))
        assert arrow and old in source, f"the block has no {old!r} to be replaced"
        source = source.replace(old, new)
    return source


def _fewer(command: list[str]) -> list[str]:
    """A command at a few steps; one that goes on with a run has its settings, and a schedule counts epochs."""
    as_it_is = command[0] != "repl-fx" or {"--resume", "--replace-at"} & {*command}
    wanted = {} if as_it_is else dict(_FEWER.get(command[1], {}))
    if command[1:2] == ["compress"] and "--heal" not in command:
        wanted.pop("--steps", None)
    return [*command, *(word for flag in wanted.items() if flag[0] not in command for word in flag)]


def shell_commands(source: str) -> list[list[str]]:
    """The commands of a block, as words; comments and variables before a command are left out."""
    lines = source.replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines]
    for words in commands:
        while words and re.fullmatch(r"\w+=.*", words[0]):
            del words[0]
    return [words for words in commands if words]


def check_options(arguments: list[str]) -> None:
    """Parse a command of repl-fx by its real options, and run nothing; raises typer's usage error."""
    commands: Any = typer.main.get_command(app)
    name, *options = _split(arguments, ">")[0]
    assert name in commands.commands or name.startswith("-"), f"repl-fx has no command {name}"
    if name in commands.commands:
        commands.commands[name].make_context(name, options)


def check_data(language: str, source: str) -> None:
    """Parse a block that holds data; pictures and plain text are taken as they are."""
    if language == "json":
        json.loads(source)
    elif language == "toml":
        tomllib.loads(source)
    elif language == "yaml":
        msgspec.yaml.decode(source)
    else:
        assert language in ("text", "mermaid"), f"a block in {language or 'no language'}: one of python, sh, text, …"


def missing_line(shown: str, printed: str) -> str | None:
    """The first line that is shown and was not printed behind the one before; spaces count as one."""
    rest = " ".join(printed.split())
    for line in shown.splitlines():
        pieces = [re.escape(" ".join(piece.split())) for piece in line.split("…")]
        found = re.search(r".*?".join(pieces), rest)
        if found is None:
            return line
        rest = rest[found.end() :]
    return None


def _split(words: list[str], at: str) -> tuple[list[str], list[str]]:
    place = words.index(at) if at in words else len(words)
    return words[:place], words[place + 1 :]


@contextlib.contextmanager
def _arguments(arguments: list[str]) -> Iterator[None]:
    before, sys.argv = sys.argv, arguments
    try:
        yield
    finally:
        sys.argv = before


@contextlib.contextmanager
def _not_imported(name: str) -> Iterator[None]:
    """A module that runs as a program and was imported by another test as well, of which `runpy` warns."""
    before = sys.modules.pop(name, None)
    try:
        yield
    finally:
        if before is not None:
            sys.modules[name] = before

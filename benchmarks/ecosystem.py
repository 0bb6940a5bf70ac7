"""What people do with a model, tried on the source model, the rewritten graph and the model in place.

    python -m benchmarks.ecosystem --docs docs            everything, and docs/ecosystem.md and docs/ecosystem.json
    python -m benchmarks.ecosystem --only 'HF*' 'DDP'     some rows; with --docs the others stay as they were
    python -m benchmarks.ecosystem --small                the quick rows, as CI runs them

Each habit (`benchmarks.habits`) is a function that does with a model what people do, checks what came of it, and raises
where that fails. It is tried on small networks of random weights, a vision transformer and a ResNet of timm, a GPT-2
and a T5 of transformers, in three forms: as it is, `result.graph_module` and `result.model`. A cell says "works", or
the reason why not, in a line.

Exit status: 0; 1 where a habit works with the source model and fails in place without a reason that was expected, or
is expected to fail and works.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import logging
import os
import platform
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

import repl_fx
from benchmarks.habits.registry import Habit, habits
from benchmarks.habits.subject import FORMS, GRAPH, IN_PLACE, NETWORKS, OUTLINED, SOURCE, Subject
from benchmarks.habits.together import run_together
from repl_fx.benchmarking.machine import installed
from repl_fx.environment.machine import cpu_model

WORKS = "works"
PACKAGES = ("timm", "transformers", "pytorch-lightning", "accelerate", "peft")
INSTALL = "pip install -e '.[bench,train]'"


@dataclass(frozen=True)
class Cell:
    """What came of a habit with one form of the networks.

    Attributes:
        says: `WORKS`, or the reason why not.
        remarks: what else was seen.
        fails: whether something failed that was not expected to.
        seconds: for all networks.
    """

    says: str
    remarks: tuple[str, ...] = ()
    fails: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class Row:
    """A habit with all forms of its networks."""

    habit: str
    networks: tuple[str, ...]
    cells: dict[str, Cell] = field(default_factory=dict)

    @property
    def problem(self) -> str:
        """What makes the script fail; nothing in most rows."""
        ours, theirs = self.cells[IN_PLACE], self.cells[SOURCE]
        if ours.fails and not theirs.fails:
            return f"{self.habit}: {ours.says}"
        return ""


def reason_of(problem: BaseException) -> str:
    """An exception in a line."""
    text = " ".join(str(problem).split()) or type(problem).__name__
    if isinstance(problem, AssertionError) or type(problem).__module__.startswith("repl_fx"):
        return _short(text)
    return _short(f"{type(problem).__name__}: {text}")


def _short(text: str, limit: int = 160) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1].rstrip()}…"


class Outcome(NamedTuple):
    """What came of a habit with one network: why it fails, nothing where it works; a remark; seconds."""

    why: str
    remark: str
    seconds: float


def attempt(habit: Habit, subject: Subject) -> Outcome:
    """Try a habit."""
    torch.manual_seed(0)
    began = time.perf_counter()
    why, remark = _tried(habit, subject)
    return Outcome(why, remark, time.perf_counter() - began)


def _tried(habit: Habit, subject: Subject) -> tuple[str, str]:
    logging.disable(logging.WARNING)
    try:
        # Libraries say much, to whom it concerns.
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            return "", habit.trial(subject) or ""
    except Exception as problem:
        return reason_of(problem), ""
    finally:
        logging.disable(logging.NOTSET)


def tried(habit: Habit, forms: Sequence[str], networks: Sequence[str]) -> dict[str, Cell]:
    """The cells of a row, by form."""
    if habit.missing:
        return dict.fromkeys(forms, Cell(f"needs {', '.join(habit.missing)}: {INSTALL}"))
    subjects = [Subject(network, form, habit.by_block) for form in forms for network in networks]
    if habit.processes > 1:
        results = [Outcome(*outcome) for outcome in run_together(habit.name, subjects, habit.processes)]
    else:
        results = [attempt(habit, subject) for subject in subjects]
    known = dict(zip(subjects, results, strict=True))
    return {form: _cell(habit, form, {s: known[s] for s in subjects if s.form == form}) for form in forms}


def _cell(habit: Habit, form: str, subjects: Mapping[Subject, Outcome]) -> Cell:
    networks, results = [subject.network for subject in subjects], list(subjects.values())
    seconds = sum(outcome.seconds for outcome in results)
    reasons = {subject.network: outcome.why for subject, outcome in subjects.items() if outcome.why}
    remarks = tuple(dict.fromkeys(outcome.remark for outcome in results if outcome.remark))
    expected = habit.expected.get(form)
    if expected is not None:
        if len(reasons) == len(subjects):
            return Cell(expected, remarks, False, seconds)
        return Cell(f"works, though this was expected: {expected}", remarks, True, seconds)
    if habit.by_block and form == GRAPH:
        remarks = (OUTLINED, *remarks)
    if not reasons:
        return Cell(WORKS, remarks, False, seconds)
    return Cell(in_a_line(reasons, networks), remarks, True, seconds)


def in_a_line(reasons: dict[str, str], networks: Sequence[str]) -> str:
    """Reasons by network; one that all have is said once."""
    alike: dict[str, list[str]] = {}
    for network, reason in reasons.items():
        alike.setdefault(reason, []).append(network)
    if len(alike) == 1 and len(reasons) == len(networks):
        return next(iter(alike))
    return "; ".join(f"{', '.join(which)}: {reason}" for reason, which in alike.items())


def about_run() -> dict[str, Any]:
    """What a reader needs to do the same."""
    return {
        "machine": f"{cpu_model()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread a process",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "repl_fx": repl_fx.__version__,
        "packages": dict.fromkeys(PACKAGES, "not installed") | installed(PACKAGES),
        "command": "python -m benchmarks.ecosystem --docs docs",
    }


def document(report: dict[str, Any]) -> str:
    """The table as a page."""
    about, packages = report["about"], ", ".join(f"{k} {v}" for k, v in report["about"]["packages"].items())
    lines = [
        "# Habits: what people do with a model",
        "",
        "Each row is something that people do with a PyTorch model, tried on three forms of small networks (a vision",
        "transformer and a ResNet of timm, a GPT-2 and a T5 of transformers): the model itself, `result.graph_module`",
        "and `result.model` of `repl_fx.transform`. A cell says that it works, checked by what came of it, or why not.",
        "What the checks are is in the docstrings of `benchmarks/habits`.",
        "",
        f"Made by `{about['command']}` on {about['machine']}, with Python {about['python']}, torch {about['torch']},",
        f"repl-fx {about['repl_fx']}, {packages}.",
        "",
        f"| habit | tried on | {' | '.join(FORMS)} |",
        f"|---|---|{'---|' * len(FORMS)}",
    ]
    for row in report["rows"]:
        cells = (row["cells"][form] for form in FORMS)
        says = (_escaped("; ".join((cell["says"], *cell["remarks"]))) for cell in cells)
        lines.append(f"| {_escaped(row['habit'])} | {', '.join(row['networks'])} | {' | '.join(says)} |")
    untried = [habit.name for habit in habits() if habit.name not in {row["habit"] for row in report["rows"]}]
    if untried:
        lines += ["", f"Not tried for this table yet: {'; '.join(untried)}."]
    return "\n".join(lines) + "\n"


def with_known(rows: list[dict[str, Any]], docs: Path) -> list[dict[str, Any]]:
    """Rows with those that were tried before and not now, in the order of the habits."""
    file = docs / "ecosystem.json"
    before = json.loads(file.read_text())["rows"] if file.is_file() else []
    known = {row["habit"]: row for row in (*before, *rows)}
    return [known[habit.name] for habit in habits() if habit.name in known]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def main(argv: Sequence[str] | None = None) -> int:
    """Try, print, write; returns the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(description="What people do with a model, tried on each form of a result.")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="GLOB", help="rows, by name")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="all by default")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), help="all by default")
    parser.add_argument("--small", action="store_true", help="the quick rows, each on one network")
    parser.add_argument("--docs", type=Path, metavar="DIR", help="write DIR/ecosystem.md and DIR/ecosystem.json")
    options = parser.parse_args(argv)
    if options.docs:
        options.docs.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    rows: list[Row] = []
    for habit in habits():
        networks = tuple(name for name in habit.networks if name in options.networks)
        if not networks or not any(fnmatch.fnmatchcase(habit.name, glob) for glob in options.only):
            continue
        if options.small:
            if not habit.quick:
                continue
            networks = networks[:1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cells = tried(habit, options.forms, networks)
        rows.append(Row(habit.name, networks, cells))
        print(habit.name, *networks, sep=", ")
        for form, cell in cells.items():
            print(f"    {form:15} {cell.seconds:5.1f} s  {'; '.join((cell.says, *cell.remarks))}", flush=True)
    if options.docs:
        report = {"about": about_run(), "rows": with_known([asdict(row) for row in rows], options.docs)}
        (options.docs / "ecosystem.json").write_text(json.dumps(report, indent=1) + "\n")
        (options.docs / "ecosystem.md").write_text(document(report))
    problems = [row.problem for row in rows if {SOURCE, IN_PLACE} <= set(options.forms) and row.problem]
    for problem in problems:
        print(f"works with the source model and fails in place: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

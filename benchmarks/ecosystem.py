"""What people do with a model, tried on the source model, the rewritten graph and the model in place.

    python -m benchmarks.ecosystem --docs docs            everything, and docs/ecosystem.md and docs/ecosystem.json
    python -m benchmarks.ecosystem --only 'HF*' 'DDP'     some rows; with --docs the others stay as they were
    python -m benchmarks.ecosystem --only 'trainers: *'   trainers of other libraries with models of transformers
    python -m benchmarks.ecosystem --small                the quick rows, as CI runs them

Each habit (`benchmarks.habits`) is a function that does with a model what people do, checks what came of it, and raises
where that fails. It is tried on small networks of random weights, a vision transformer and a ResNet of timm, a GPT-2
and a T5 of transformers, in three forms: as it is, `result.graph_module` and `result.model`. A cell says "works", or
the reason why not, in a line. Trainers (`benchmarks.habits.trainers`) are tried with each surrogate that a plan offers.

Exit status: 0; 1 where a habit works with the source model and fails in place without a reason that was expected, or
is expected to fail and works.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.util
import json
import logging
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

import repl_fx
from benchmarks.habits.registry import Habit, habits
from benchmarks.habits.shapes import SHAPES
from benchmarks.habits.subject import FORMS, GRAPH, IN_PLACE, NETWORKS, OUTLINED, SOURCE, Subject
from benchmarks.habits.together import run_together
from benchmarks.habits.trainers import NONE, SURROGATES, TRAINERS, Case, offered
from repl_fx.benchmarking.hardware import installed
from repl_fx.environment.machine import cpu_model

WORKS = "works"
PACKAGES = ("timm", "transformers", "pytorch-lightning", "accelerate", "peft", "trl")
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
    why, remark = _tried(habit.trial, subject)
    return Outcome(why, remark, time.perf_counter() - began)


def _tried(trial: Callable[[Any], str | None], subject: Any) -> tuple[str, str]:
    logging.disable(logging.WARNING)
    try:
        # Libraries say much, to whom it concerns.
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            return "", trial(subject) or ""
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


def _made_by(about: Mapping[str, Any]) -> list[str]:
    packages = ", ".join(f"{name} {number}" for name, number in about["packages"].items())
    return [
        f"Made by `{about['command']}` on {about['machine']}, with Python {about['python']}, torch {about['torch']},",
        f"repl-fx {about['repl_fx']}, {packages}.",
    ]


def with_trainers(shape: str, surrogates: Mapping[str, str]) -> dict[str, dict[str, Cell]]:
    """What came of each trainer with each surrogate in place of blocks of a shape."""
    found: dict[str, dict[str, Cell]] = {}
    for trainer, (package, trial) in TRAINERS.items():
        if importlib.util.find_spec(package) is None:
            found[trainer] = dict.fromkeys(surrogates, Cell(f"needs {package}: {INSTALL}"))
            continue
        found[trainer] = {}
        for surrogate in surrogates:
            began = time.perf_counter()
            torch.manual_seed(0)
            why, remark = _tried(trial, Case(shape, surrogate))
            if why and (theirs := _tried(trial, Case(shape, NONE))[0]):
                # It is the same with all.
                found[trainer] = dict.fromkeys(surrogates, Cell(f"not with the source model: {theirs}"))
                break
            remarks = (remark,) if remark else ()
            found[trainer][surrogate] = Cell(why or WORKS, remarks, bool(why), time.perf_counter() - began)
    return found


def trainers_row(shape: str, surrogates: Sequence[str]) -> dict[str, Any]:
    """The row of a shape in the table of trainers, with those of some surrogates that its plans have."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        offers = offered(shape, surrogates)
        found = with_trainers(shape, offers)
    return {"surrogates": offers, "cells": {t: {s: asdict(c) for s, c in of.items()} for t, of in found.items()}}


def trainers_table(rows: Mapping[str, Any]) -> list[str]:
    """The table of trainers, with a note for each reason and each remark."""
    notes: dict[str, int] = {}
    lines = [
        "",
        "## Trainers",
        "",
        "Models of transformers in place, of their own configs, small, of random weights, every second block replaced.",
        "A trainer trains, keeps checkpoints, resumes from one to the same weights as without the break, and loads the",
        "best model; what `save_pretrained` writes is an artifact. `benchmarks/habits/trainers.py` has the checks.",
        "The second column names the surrogates that were tried, and a cell those with which all of that works.",
        "",
        f"| model | surrogates | {' | '.join(TRAINERS)} |",
        f"|---|---|{'---|' * len(TRAINERS)}",
    ]
    for shape, row in rows.items():
        offers = row["surrogates"]
        named = [name if offers[name] == name else f"{name} ({offers[name]})" for name in offers]
        cells = [_of_trainer(row["cells"][trainer], notes) for trainer in TRAINERS]
        lines.append(f"| {SHAPES[shape].model} | {', '.join(named)} | {' | '.join(cells)} |")
    return [*lines, "", *(f"{number}. {_escaped(note)}" for note, number in notes.items())]


def _of_trainer(cells: Mapping[str, Any], notes: dict[str, int]) -> str:
    """A cell of the table of trainers: what works, and the numbers of the notes."""

    def marked(says: str, about: Sequence[str]) -> str:
        numbers = [notes.setdefault(note, len(notes) + 1) for note in about]
        return says + "".join(f" ({number})" for number in numbers)

    works = {name: cell["remarks"] for name, cell in cells.items() if cell["says"] == WORKS}
    fails = {name: cell["says"] for name, cell in cells.items() if cell["says"] != WORKS}
    if not works and len(set(fails.values())) == 1:
        return marked("—", list(dict.fromkeys(fails.values())))
    if not fails and len({tuple(remarks) for remarks in works.values()}) == 1:
        return marked("all", next(iter(works.values())))
    says = [marked(name, remarks) for name, remarks in works.items()]
    return ", ".join([*says, *(f"not {marked(name, [why])}" for name, why in fails.items())])


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
    lines = [
        "# Habits: what people do with a model",
        "",
        "Each row is something that people do with a PyTorch model, tried on three forms of small networks (a vision",
        "transformer and a ResNet of timm, a GPT-2 and a T5 of transformers): the model itself, `result.graph_module`",
        "and `result.model` of `repl_fx.transform`. A cell says that it works, checked by what came of it, or why not.",
        "What the checks are is in the docstrings of `benchmarks/habits`.",
        "",
        *_made_by(report["about"]),
        "",
        f"| habit | tried on | {' | '.join(FORMS)} |",
        f"|---|---|{'---|' * len(FORMS)}",
    ]
    for row in report["rows"]:
        cells = (row["cells"][form] for form in FORMS)
        says = (_escaped("; ".join((cell["says"], *cell["remarks"]))) for cell in cells)
        lines.append(f"| {_escaped(row['habit'])} | {', '.join(row['networks'])} | {' | '.join(says)} |")
    if report.get("trainers"):
        lines += [*trainers_table(report["trainers"]), "", *_made_by(report["about_trainers"])]
    untried = [habit.name for habit in habits() if habit.name not in {row["habit"] for row in report["rows"]}]
    if untried:
        lines += ["", f"Not tried for this table yet: {'; '.join(untried)}."]
    return "\n".join(lines) + "\n"


def with_known(rows: list[dict[str, Any]], trainers: Mapping[str, Any], docs: Path) -> dict[str, Any]:
    """A report with what was tried before and not now, in the order of the habits and of the shapes."""
    file, about = docs / "ecosystem.json", about_run()
    before: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {"about": about, "rows": []}
    known = {row["habit"]: row for row in (*before["rows"], *rows)}
    shapes = {**before.get("trainers", {}), **trainers}
    return {
        "about": about if rows else before["about"],
        "about_trainers": about if trainers else before.get("about_trainers"),
        "rows": [known[habit.name] for habit in habits() if habit.name in known],
        "trainers": {shape: shapes[shape] for shape in SHAPES if shape in shapes},
    }


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def main(argv: Sequence[str] | None = None) -> int:
    """Try, print, write; returns the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(description="What people do with a model, tried on each form of a result.")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="GLOB", help="rows, by name")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="all by default")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), help="all by default")
    parser.add_argument("--surrogates", nargs="+", choices=SURROGATES, default=list(SURROGATES), help="of the trainers")
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
    shapes = [
        shape for shape in SHAPES if any(fnmatch.fnmatchcase(f"trainers: {shape}", glob) for glob in options.only)
    ]
    trainers: dict[str, Any] = {}
    for shape in () if options.small else shapes:
        # Trainers leave changes behind, with which a Whisper learns nothing after a T5.
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            trainers[shape] = process.submit(trainers_row, shape, options.surrogates).result()
        print(f"trainers: {shape}")
        for trainer, cells in trainers[shape]["cells"].items():
            for surrogate, cell in cells.items():
                says = "; ".join((cell["says"], *cell["remarks"]))
                print(f"    {trainer:10} {surrogate:10} {cell['seconds']:5.1f} s  {says}", flush=True)
    if options.docs:
        report = with_known([asdict(row) for row in rows], trainers, options.docs)
        (options.docs / "ecosystem.json").write_text(json.dumps(report, indent=1) + "\n")
        (options.docs / "ecosystem.md").write_text(document(report))
    problems = [row.problem for row in rows if {SOURCE, IN_PLACE} <= set(options.forms) and row.problem]
    problems += [
        f"{trainer} of a {shape} with {surrogate}: {cell['says']}"
        for shape, row in trainers.items()
        for trainer, cells in row["cells"].items()
        for surrogate, cell in cells.items()
        if cell["fails"]
    ]
    for problem in problems:
        print(f"works with the source model and fails in place: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

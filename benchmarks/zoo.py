"""The zoo: what repl-fx does with a few hundred models of five libraries, stage by stage.

    python -m benchmarks.zoo                                  every model, two at a time; resumes where it stopped
    python -m benchmarks.zoo --only 'timm:*vit*' --stages captured..repeats
    python -m benchmarks.zoo --sample 60                      60 models of all libraries, the same ones for everyone
    python -m benchmarks.zoo --report-only                    docs/zoo.md and docs/zoo.json from what was run
    python -m benchmarks.zoo --known docs/zoo.json            run what that report does not have in all stages
    python -m benchmarks.zoo --compress --sample 60           scores, budgets, fits: `zoo_runner.compressing`
    python -m benchmarks.zoo --sizes                          small models at other sizes: `zoo_runner.sizing`
    python -m benchmarks.zoo --data                           the commands that read data: `zoo_runner.reading`
    python -m benchmarks.zoo --sizes --report-only            their section of docs/zoo.md alone; --data likewise

For each model, with random weights, small inputs of batch 2, dropout and drop path on:

    captured    `repl_fx.capture_parts` makes one graph of the whole model, or graphs of its largest parts
    eval        its outputs equal the model's in evaluation mode, bit for bit
    train       its outputs, all gradients and all buffers equal the model's in training mode, under one seed, likewise
    repeats     repeats are looked for; a model in which no block has one like it before and behind ends here, as "no
                repeated blocks", and the table argues why
    replaced    every second block of each repeat is replaced, by surrogate `auto`
    trained     a few training steps: the loss, all gradients and what the source does not mask of the outputs are
                finite, every surrogate gets a gradient; saved
    placed      the model in place computes what the graph does, with all gradients, in both modes, bit for bit; the
                report says which blocks have no place in the source's own tree, and stay as they are here
    reloaded    a fresh process builds the model, loads the artifact and gets the same outputs, bit for bit
    folded      the folded graph has no synthesis left and the same outputs, bit for bit
    exported    an ONNX file is written; for a model in parts, one for each part with surrogates
    verified    ONNX Runtime computes what the folded graph computes, at batch 1, 2 and 5

Every model counts, whatever becomes of it. Each half of the stages runs in a process of its own, forked from a server
that has imported the libraries and seen no model of the zoo. Results go to `OUT/zoo.jsonl` as they come, one a line.

Exit status: 0; 1 where a model failed with `--strict`.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

# One thread a process: the workers share the cores, and sums come out the same in every run.
os.environ["OMP_NUM_THREADS"] = "1"

from benchmarks.zoo_models import all_cases, sized_cases
from benchmarks.zoo_models.case import Case
from benchmarks.zoo_models.sample import sample
from benchmarks.zoo_runner.compressing import COMPRESSING, compress
from benchmarks.zoo_runner.reading import READING, reading
from benchmarks.zoo_runner.report import write_reading, write_report, write_sizes
from benchmarks.zoo_runner.sizing import SIZING, sized
from benchmarks.zoo_runner.stages import FIRST, STAGES, Record, first_half, run_half, second_half

ROOT = Path(__file__).resolve().parent.parent
PRELOADED = "benchmarks.zoo_runner.preload"
KINDS = {"zoo": STAGES, "compress": COMPRESSING, "sizes": SIZING, "data": READING}
_HALVES = {"zoo": first_half, "compress": compress, "sizes": sized, "data": reading}


class Runner:
    """Runs cases in processes of their own and collects their records.

    Attributes:
        out: directory of `zoo.jsonl` and of the tracebacks of what failed.
        limit: seconds that one half may take.
        last: the stage to stop after.
        kind: of the stages: `zoo`, `compress`, `sizes` or `data`.
    """

    def __init__(self, out: Path, limit: float, last: str, total: int, kind: str = "zoo") -> None:
        self.out, self.kind = out, kind
        self.stages = KINDS[kind]
        self.commit = _commit()
        self.limit = limit
        self.last = last
        self.total = total
        self.done = 0
        self.writing = threading.Lock()
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([PRELOADED])
        self.heavy = self.context.Lock()

    def run(self, case: Case) -> Record:
        """Run one case through the stages and append its record to `zoo.jsonl`."""
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
            place = Path(folder)
            record = Record(case.name, case.family, case.note, self.commit)
            record.write(place)
            record = self.half(_HALVES[self.kind], case, place)
            if self.kind == "zoo" and STAGES.index(self.last) >= len(FIRST) and record.passed == list(FIRST):
                record = self.half(second_half, case, place)
            self.keep_traceback(case, place)
        record.seconds["all"] = round(time.perf_counter() - begin, 1)
        with self.writing:
            self.done += 1
            with (self.out / f"{self.kind}.jsonl").open("a") as lines:
                lines.write(json.dumps(asdict(record)) + "\n")
            outcome = (
                f"FAILED at {record.failed}: {record.reason[:150]}" if record.failed else record.reason or "passed"
            )
            print(f"[{self.done}/{self.total}] {case.name} {record.seconds['all']:.0f}s {outcome}", flush=True)
        return record

    def half(self, half: Callable[..., None], case: Case, place: Path) -> Record:
        """Run one half in a process; what kills it is the failure of the stage it was in."""
        process = self.context.Process(target=run_half, args=(half, case.name, str(place), self.last, self.heavy))
        process.start()
        process.join(self.limit)
        late = process.is_alive()
        if late:
            process.kill()
            process.join()
        record = Record.read(place)
        if late or process.exitcode != 0:
            if record.failed is None:
                record.failed = self.stages[len(record.passed)]
            why = f"no end after {self.limit:.0f} s" if late else f"the process died with status {process.exitcode}"
            record.reason = record.reason or why
            record.write(place)
        return record

    def keep_traceback(self, case: Case, place: Path) -> None:
        """Keep the traceback of a failure, drop that of an earlier run."""
        kept = self.out / "tracebacks" / f"{case.name.replace(':', '_').replace('/', '_')}.txt"
        kept.unlink(missing_ok=True)
        if (place / "traceback.txt").exists():
            kept.parent.mkdir(exist_ok=True)
            shutil.copy(place / "traceback.txt", kept)


def read_records(out: Path, known: Path | None = None, kind: str = "zoo") -> dict[str, dict[str, Any]]:
    """The last record of each model of these stages, or else in a report that is `known`."""
    file = out / f"{kind}.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    before = json.loads(known.read_text())["models"] if known is not None else []
    return {record["name"]: record for record in (*before, *map(json.loads, lines))}


def _commit() -> str:
    """The commit of the code that runs; empty outside of a repository."""
    asked = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return asked.stdout.strip()


def choose(
    cases: Sequence[Case],
    only: Sequence[str],
    family: Sequence[str],
    done: dict[str, Any],
    wanted_stages: Sequence[str],
    again: str,
) -> list[Case]:
    """The cases to run now: those that match, and have not passed all the stages that are wanted."""

    def wanted(case: Case) -> bool:
        if only and not any(fnmatch.fnmatchcase(case.name, glob) for glob in only):
            return False
        if family and not any(fnmatch.fnmatchcase(case.family, glob) for glob in family):
            return False
        record = done.get(case.name)
        if record is None or again == "all" or (again == "failed" and record["failed"]):
            return True
        if all(stage in record["passed"] for stage in wanted_stages):
            return False
        # A record without a commit is from before there was a stage between.
        return not (record["failed"] or record["nothing_repeats"]) or not record.get("commit")

    return [case for case in cases if wanted(case)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the zoo and write its report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", default=[], metavar="GLOB", help="models by name, e.g. 'timm:vit*'")
    parser.add_argument("--family", action="append", default=[], metavar="GLOB", help="models by family")
    parser.add_argument("--sample", type=int, metavar="N", help="N models of the list, the same ones for everyone")
    parser.add_argument("--stages", metavar="A..B", help=f"where to stop  [{STAGES[0]}..{STAGES[-1]}]")
    kinds = parser.add_mutually_exclusive_group()
    for kind, words in (
        ("compress", "the stages of a compression"),
        ("sizes", "small models at other sizes"),
        ("data", "the commands that read data"),
    ):
        kinds.add_argument(
            f"--{kind}", dest="kind", action="store_const", const=kind, help=f"{words}, instead of these"
        )
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "zoo", help="where results are kept (build/zoo)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=float, default=300, help="seconds for each half of the stages (300)")
    parser.add_argument("--known", type=Path, metavar="FILE", help="a zoo.json, whose records count as run")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--resume", dest="again", action="store_const", const="", help="skip what was run (the default)")
    group.add_argument("--failed", dest="again", action="store_const", const="failed", help="run failures again")
    group.add_argument("--again", dest="again", action="store_const", const="all", help="run everything again")
    parser.set_defaults(again="", kind="zoo")
    parser.add_argument("--report", type=Path, default=None, metavar="DIR", help="write zoo.md and zoo.json there")
    parser.add_argument("--report-only", action="store_true", help="run nothing; write the report to docs/")
    parser.add_argument("--strict", action="store_true", help="exit with 1 where a model failed")
    given = parser.parse_args(arguments)
    stages = KINDS[given.kind]
    last = stages[-1] if given.stages is None else given.stages.partition("..")[2] or given.stages
    if last not in stages:
        parser.error(f"no stage {last!r}; the stages are {', '.join(stages)}")
    if given.kind == "compress" and (given.known or given.report or given.report_only):
        parser.error("--compress prints its results, and has no report: leave out --known, --report and --report-only")
    given.out.mkdir(parents=True, exist_ok=True)
    listed = sized_cases() if given.kind == "sizes" else all_cases()
    if given.kind == "data":
        listed = [case for case in listed if case.data]
    cases = listed if given.sample is None else sample(listed, given.sample)
    done = read_records(given.out, given.known, given.kind)
    if not given.report_only:
        chosen = choose(cases, given.only, given.family, done, stages[: stages.index(last) + 1], given.again)
        print(f"{len(chosen)} of {len(cases)} models to run, {given.workers} at a time", flush=True)
        runner = Runner(given.out, given.limit, last, len(chosen), given.kind)
        with ThreadPoolExecutor(given.workers) as pool:
            list(pool.map(runner.run, chosen))
    done = read_records(given.out, given.known, given.kind)
    records = [done[case.name] for case in cases if case.name in done]
    place = ROOT / "docs" if given.report_only and given.report is None else given.report
    if place is not None:
        if given.kind == "sizes":
            write_sizes(records, place)
        elif given.kind == "data":
            write_reading(records, len(cases), place)
        else:
            write_report(records, [case.name for case in cases], place)
    failed = [record["name"] for record in records if record["failed"]]
    print(f"{len(records)} of {len(cases)} run, {len(failed)} failed")
    if given.kind == "compress" and records:
        able = [record for record in records if not record["nothing_repeats"]]
        passed = sum(not record["failed"] for record in able)
        print(f"scores, budgets and fits work on {passed} of {len(able)} models in which something can be replaced")
    return 1 if given.strict and failed else 0


if __name__ == "__main__":
    sys.exit(main())

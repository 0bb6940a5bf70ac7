"""The attack: random networks through every stage of repl-fx, each judged right, refused, wrong or crashed.

    python -m benchmarks.attack --networks 500                the networks of seeds 0 to 499; resumes where it stopped
    python -m benchmarks.attack --minutes 30 --seed 7         as many as fit, from seed 700,000 on
    python -m benchmarks.attack --networks 0 --corrupt 300    faults put into ONNX files, and clean files
    python -m benchmarks.attack --networks 0 --altered 1      weights altered by a little, in trained networks
    python -m benchmarks.attack --networks 0 --artifacts 1000 damaged artifacts
    python -m benchmarks.attack --only 17 -v                  one network in full

What the networks are made of and what the judge asks of each stage stand in `tests/attack/networks.py` and
`tests/attack/judge.py`. Each network has a process of its own; one that takes longer than `--limit` counts as crashed.
Results go to `OUT/attack.jsonl` as they come, one a line.

Exit status: 0; 1 where anything was wrong or crashed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib import import_module
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# One thread a process: the workers share the cores, and sums come out the same in every run.
os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).resolve().parent.parent
Line = dict[str, Any]


def judge_one(seed: int, out: Connection) -> None:
    """Judge one network in this process and send what became of it."""
    from tests.attack.judge import judge

    # What torch logs about what it refuses comes back as repl-fx's reason.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    warnings.simplefilter("error")
    verdict = judge(seed)
    out.send({**asdict(verdict), "outcome": verdict.outcome})


class Attack:
    """Judges networks in processes of their own and keeps what became of them.

    Attributes:
        out: directory of `attack.jsonl`.
        limit: seconds for one network.
        commit: of the code that is attacked; lines of another commit are not resumed from.
    """

    def __init__(self, out: Path, limit: float) -> None:
        self.out, self.limit = out, limit
        self.commit = _commit()
        self.lines: dict[int, Line] = {}
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["benchmarks.zoo_runner.preload", "tests.attack.judge"])
        out.mkdir(parents=True, exist_ok=True)
        if self.file.exists():
            for text in self.file.read_text().splitlines():
                line = json.loads(text)
                if line["commit"] == self.commit:
                    self.lines[line["seed"]] = line

    @property
    def file(self) -> Path:
        """Where results go."""
        return self.out / "attack.jsonl"

    def run(self, seed: int) -> Line:
        """Judge one network, unless that was done before."""
        if seed in self.lines:
            return self.lines[seed]
        begin = time.perf_counter()
        mine, theirs = self.context.Pipe(duplex=False)
        process = self.context.Process(target=judge_one, args=(seed, theirs))
        process.start()
        theirs.close()
        line: Line = {"seed": seed, "features": [], "findings": []}
        try:
            line = mine.recv() if mine.poll(self.limit) else _ended(line, f"no end after {self.limit:.0f} s")
        except EOFError:
            process.join()
            line = _ended(line, f"the process ended with {process.exitcode}")
        process.kill()
        process.join()
        line.update(commit=self.commit, wall=round(time.perf_counter() - begin, 2))
        self.lines[seed] = line
        with self.file.open("a") as lines:
            lines.write(json.dumps(line) + "\n")
        return line


def _ended(line: Line, why: str) -> Line:
    return {**line, "outcome": "crashed", "findings": [{"stage": "process", "outcome": "crashed", "detail": why}]}


def _commit() -> str:
    """The commit of the working tree, with a mark where files differ from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def report(lines: Sequence[Line]) -> str:
    """Counts of what became of networks, the reasons of refusals, and every failure with its command."""
    outcomes = Counter(line["outcome"] for line in lines)
    text = [
        f"{len(lines)} networks: " + ", ".join(f"{outcomes[o]} {o}" for o in ("right", "refused", "wrong", "crashed"))
    ]
    stages: dict[str, Counter[str]] = {}
    reasons: Counter[str] = Counter()
    for line in lines:
        for finding in line["findings"]:
            stage = finding["stage"]
            stages.setdefault(stage, Counter())[finding["outcome"]] += 1
            if finding["outcome"] == "refused":
                reasons[f"{stage.split('/')[-1]}: {reason(finding['detail'])}"] += 1
    text.append("\nstage: right, refused, wrong, crashed")
    for stage, counts in sorted(stages.items()):
        text.append(f"  {stage}: " + ", ".join(str(counts[o]) for o in ("right", "refused", "wrong", "crashed")))
    text.append("\nrefused because")
    text += [f"  {count:4d}  {why}" for why, count in reasons.most_common(60)]
    failures = [line for line in lines if line["outcome"] in ("wrong", "crashed")]
    text.append(f"\n{len(failures)} wrong or crashed")
    for line in failures:
        text.append(f"  python -m benchmarks.attack --only {line['seed']} -v")
        for finding in line["findings"]:
            if finding["outcome"] in ("wrong", "crashed"):
                text.append(f"      {finding['stage']} {finding['outcome']}: {finding['detail'][:300]}")
    return "\n".join(text)


def reason(detail: str) -> str:
    """A refusal without the names and numbers of the network, so that equal ones can be counted."""
    detail = re.sub(r"nothing to replace: (found [^:]*: )?", "", detail)
    detail = detail.split("; ")[0]
    detail = re.sub(r"(repeats|block|blocks)[._][\w.]*", "BLOCK", detail)
    detail = re.sub(r"(/[\w./-]+/)+", "", detail)
    return re.sub(r"\d+", "N", detail)[:160]


def _seeds(options: argparse.Namespace, stop: float | None) -> Iterator[int]:
    first = 100_000 * options.seed
    number = 0
    while options.networks is None or number < options.networks:
        if stop is not None and time.monotonic() > stop:
            return
        yield first + number
        number += 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the attack and print what became of it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attack", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--networks", type=int, help="how many (default: 100, or as many as --minutes allow)")
    parser.add_argument("--minutes", type=float, help="no network begins after this many minutes")
    parser.add_argument("--seed", type=int, default=0, help="the networks' seeds begin at 100,000 times this")
    parser.add_argument("--artifacts", type=int, default=0, help="how many artifacts are damaged")
    parser.add_argument("--corrupt", type=int, default=0, help="how many faults are put into ONNX files")
    parser.add_argument("--altered", type=int, default=0, help="one in so many of the altered weights is tried")
    parser.add_argument("--jobs", type=int, default=1, help="how many networks at a time")
    parser.add_argument("--limit", type=float, default=180.0, help="seconds for one network")
    parser.add_argument("--only", type=int, help="judge the network of this seed alone, in this process")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "attack", help="directory of the results")
    parser.add_argument("-v", "--verbose", action="store_true", help="print every network in full")
    options = parser.parse_args(arguments)
    if options.only is not None:
        return _show(options.only)
    if options.networks is None and options.minutes is None:
        options.networks = 100
    stop = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    attack = Attack(options.out, options.limit)
    lines = []
    with ThreadPoolExecutor(options.jobs) as pool:
        seeds = _seeds(options, stop)
        # Chunks, so that --minutes stops a run of many.
        while chunk := list(islice(seeds, options.jobs)):
            for line in pool.map(attack.run, chunk):
                lines.append(line)
                words = "" if options.verbose else _worst(line)
                print(f"{line['seed']} {line['outcome']} {line['wall']:.1f}s {words}", flush=True)
                if options.verbose:
                    print("\n".join(f"  {f['stage']}: {f['outcome']} {f['detail']}" for f in line["findings"]))
    failed = any(line["outcome"] in ("wrong", "crashed") for line in lines)
    if lines:
        print("\n" + report(lines))
    runs = (
        ("tests.attack.corruptor", "run_corruptor", options.corrupt),
        ("tests.attack.altered", "run_altered", options.altered),
        ("tests.attack.artifacts", "run_damages", options.artifacts),
    )
    for module, run, count in runs:
        if count:
            counts: Any = getattr(import_module(module), run)(options.seed, count)
            print(counts)
            failed = failed or bool(counts.wrong)
    return int(failed)


def _worst(line: Line) -> str:
    for outcome in ("crashed", "wrong"):
        for finding in line["findings"]:
            if finding["outcome"] == outcome:
                return f"{finding['stage']}: {finding['detail'][:160]}"
    return ""


def _show(seed: int) -> int:
    from tests.attack.judge import judge

    warnings.simplefilter("error")
    verdict = judge(seed)
    print(verdict)
    return int(verdict.outcome in ("wrong", "crashed"))


if __name__ == "__main__":
    sys.exit(main())

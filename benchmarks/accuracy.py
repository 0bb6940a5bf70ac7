"""Accuracy: networks trained from scratch, full and with replaced blocks, next to pruned ones and free thin layers.

    python -m benchmarks.accuracy --scale gpu --data-dir DIR           every task and variant, 3 seeds; resumes
    python -m benchmarks.accuracy --scale cpu --data-dir DIR --workers 2 --tasks 'cifar10/*' --variants full auto@3
    python -m benchmarks.accuracy --report-only                        docs/accuracy.* from what was run

Tasks are pairs of a data set and a network: CIFAR-10 and Fashion-MNIST with ResNet-32, ResNet-110 (on a GPU alone), a
small vision transformer and a ConvNeXt; and a GPT on the bytes of the standard library of the Python that runs this,
without its tests, one file of ten held out by a hash of its path. Variants are given as KEY[:name=value,...][@every]:
the key of a surrogate, its settings, and which blocks it replaces (every 2nd where it does not say); or `full`, or
`stochastic-depth`. The default ones: full; and, for every 2nd and every 3rd block, depth pruning (`identity`, the
floor), `auto`, the same with weights of their own as a control, and both kinds of `blend`.

Every variant of a task is trained alike, by `repl_fx.training`, as `repl-fx train` does: AdamW, a linear warm-up and a
cosine to zero, gradients clipped, weight decay on matrices alone, labels smoothed for pictures; pictures are shifted at
random, those of CIFAR-10 also mirrored; text is cut into windows once. The recipe is tuned for none. Under one seed all
variants begin with the same values in what they share, as the whole network is made first and then rewritten, and see
the same data in the same order.

Reported, after the last step and never for a better one before: accuracy and cross-entropy on the test pictures (the
cross-entropy, without smoothing, moves less by chance), or bits per byte on windows of the held-out files, in which a
byte is predicted from those before it in its window. Also the loss on the last twentieth of the training steps that
were logged, smoothed as it was trained; parameters; the time of a step, loading included, of the median epoch; seconds
of the whole run with rewriting, compiling and testing; and on a GPU the peak of allocated memory in MiB, with the data.
Step times of runs that shared a machine are disturbed; `step_cost.py` measures them by themselves.

The scales: `gpu` trains on everything, in bfloat16 autocast, with the data on the device; `cpu` is smaller and says
little about absolute accuracies: narrow networks, fewer epochs, ResNet on pictures of half the size, float32, one
thread a run; `smoke` only shows that it works. Records go to OUT/accuracy.jsonl as they come, and what is there is not
run again; seeds come one after the other, all variants of a task within a seed. Other sizes, recipes and settings are
other runs, but a change in the code of a surrogate or of the training is not noticed: give another OUT after one.

Exit status: 0; 1 where a run failed; 2 where there is no such data, task, variant or device.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch

from benchmarks.training.accuracy_report import write_report
from benchmarks.training.runs import DEFAULT_VARIANTS, Run, parse_variant, perform
from benchmarks.training.tasks import SCALES, Task, tasks
from repl_fx.errors import BadInput, ReplFxError

ROOT = Path(__file__).resolve().parent.parent
# A run may take somewhat longer than the longest before it.
MARGIN = 1.1


class Records:
    """The file of records; what a killed run left half written is skipped.

    Attributes:
        file: one record a line.
        all: those that were read and those that were added.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / "accuracy.jsonl"
        self.all: list[dict[str, Any]] = []
        for line in self.file.read_text().splitlines() if self.file.exists() else []:
            try:
                self.all.append(json.loads(line))
            except ValueError:
                print(f"{self.file}: a line that is no record is skipped", file=sys.stderr)

    def add(self, record: dict[str, Any]) -> None:
        """Keep a record, at once."""
        self.all.append(record)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        torn = self.file.exists() and not self.file.read_bytes().endswith(b"\n") and self.file.stat().st_size
        with self.file.open("a") as file:
            file.write(("\n" if torn else "") + json.dumps(record) + "\n")

    def done(self) -> set[str]:
        """Keys of the runs that have a result."""
        return {json.dumps(r["settings"], sort_keys=True) for r in self.all if "error" not in r}

    def expected(self, run: Run) -> float:
        """Seconds that a run may take: as the longest of its task, else of all; 0 where nothing was run."""
        wanted = run.settings()
        alike = [r for r in self.all if all(r["settings"][k] == wanted[k] for k in ("scale", "device", "compiled"))]
        same = [r for r in alike if all(r["settings"][k] == wanted[k] for k in ("task", "recipe"))]
        return MARGIN * max((r["seconds"] for r in same or alike), default=0.0)


def plan(options: argparse.Namespace) -> list[Run]:
    """The runs that were asked for, those of a seed together.

    Raises:
        BadInput: there is no such task.
        ReplFxError: a variant that is none.
    """
    known = list(tasks(options.scale))
    for glob in options.tasks:
        if not fnmatch.filter(known, glob):
            raise BadInput(f"--tasks {glob!r} is none of scale {options.scale}, which has {', '.join(known)}")
    names = [name for name in known if any(fnmatch.fnmatchcase(name, glob) for glob in options.tasks)]
    for variant in options.variants:
        parse_variant(variant)
    made = (options.device, options.epochs, options.compile)
    return [
        Run(options.scale, name, variant, seed, *made)
        for name in names
        for seed in range(options.seeds)
        for variant in options.variants
    ]


def carry_out(
    runs: Sequence[Run], folder: Path, workers: int, affordable: Callable[[Run], bool]
) -> Iterator[dict[str, Any]]:
    """Do runs, so many at a time, until one is not affordable; yields records as they come."""
    if workers == 1:
        for run in runs:
            if not affordable(run):
                break
            yield perform(run, folder)
        return
    pending = list(reversed(runs))
    running: set[Future[dict[str, Any]]] = set()
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        while pending or running:
            while pending and len(running) < workers:
                if affordable(pending[-1]):
                    running.add(pool.submit(perform, pending.pop(), folder, workers))
                else:
                    pending.clear()
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()


def told(record: dict[str, Any]) -> str:
    """A record on one line."""
    settings, result = record["settings"], record.get("result")
    name = f"{settings['task']} {settings['variant']['name']} seed {settings['seed']} {record['seconds']:.0f}s"
    if result is None:
        return f"{name} FAILED {record['error']}"
    if settings["task"].startswith("text/"):
        return f"{name} {result['bits']:.4f} bits per byte"
    return f"{name} {100 * result['accuracy']:.2f} %, {result['loss']:.4f} nats"


def train_all(options: argparse.Namespace) -> int:
    """Run what is not done yet."""
    begin = time.monotonic()
    records = Records(options.out)
    done = records.done()
    wanted = plan(options)
    runs = [run for run in wanted if run.key() not in done]
    # What is not there should not end the runs of another data set hours later.
    for task in _one_for_each_data_set(runs):
        task.load(options.data_dir, download=options.download)
    print(f"{len(wanted) - len(runs)} of {len(wanted)} runs are in {records.file} already", flush=True)

    def affordable(run: Run) -> bool:
        return options.budget_s is None or time.monotonic() - begin + records.expected(run) <= options.budget_s

    failed = count = 0
    for record in carry_out(runs, options.data_dir, options.workers, affordable):
        records.add(record)
        failed += "error" in record
        count += 1
        print(f"[{count}/{len(runs)}] {told(record)}", flush=True)
    if count < len(runs):
        print(f"{len(runs) - count} runs are left, as the next would not end within {options.budget_s:g} s")
    return 1 if failed else 0


def _one_for_each_data_set(runs: Sequence[Run]) -> list[Task]:
    return list({run.task.partition("/")[0]: run.what for run in runs}.values())


def main(argv: Sequence[str] | None = None) -> int:
    """Train, print, write; returns the exit status."""
    parser = argparse.ArgumentParser(description="Accuracy of networks with replaced blocks, trained from scratch.")
    default = "gpu" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--scale", choices=SCALES, default=default, help=f"how much is computed (default {default})")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda for scale gpu, else cpu")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="directory of the pictures (default data)")
    parser.add_argument("--download", action="store_true", help="fetch pictures that are not there")
    parser.add_argument("--tasks", nargs="*", default=["*"], metavar="GLOB", help="DATA/NETWORK (default all)")
    parser.add_argument("--variants", nargs="*", default=list(DEFAULT_VARIANTS), metavar="KEY[:name=value,...][@every]")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to N-1 (default 3)")
    parser.add_argument("--epochs", type=int, help="epochs instead of the task's")
    parser.add_argument("--compile", nargs="?", const="default", metavar="MODE", help="train through torch.compile")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time (default 1)")
    parser.add_argument("--budget-s", type=float, help="start no run that would not end within so many seconds")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "accuracy", help="directory of accuracy.jsonl")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where --report-only writes (default docs)")
    parser.add_argument("--report-only", action="store_true", help="train nothing, write the report")
    options = parser.parse_args(argv)
    if options.docs:
        options.docs.mkdir(parents=True, exist_ok=True)
    for name in ("seeds", "workers", "epochs"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name} must be 1 or more")
    options.device = options.device or ("cuda" if options.scale == "gpu" else "cpu")
    try:
        if options.report_only:
            print(write_report(Records(options.out).all, options.docs))
            return 0
        if options.device == "cuda" and not torch.cuda.is_available():
            raise BadInput("there is no CUDA device; use --scale cpu")
        return train_all(options)
    except ReplFxError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

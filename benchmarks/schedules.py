"""What schedules of Replacement Learning are worth: when blocks are replaced and restored, and what neighbours do.

    python -m benchmarks.schedules                     scikit-learn's digits, which need no files
    python -m benchmarks.schedules --data DIR          CIFAR-10 (DIR/cifar10.npz) at half the size, 8,000 pictures

A vision transformer of five blocks is trained from the same start on the same batches by each schedule, with every
second block replaced: by `repl_fx.training`, with its learning rate over the whole run. Measured are the accuracy on
what is held out after the last epoch, in %, and the CPU seconds of the run in one thread with its evaluations and what
lies between phases; not the first transform. Each run is a line of `--out`, where a run that is there is not done
again; `--docs` writes the section of docs/results.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import repl_fx
from benchmarks.training.data import load, thinned
from benchmarks.training.models import vit
from repl_fx.benchmarking.hardware import installed
from repl_fx.environment.machine import cpu_model
from repl_fx.errors import ReplFxError
from repl_fx.training.data import load_data
from repl_fx.training.data.data_set import Data, Tensors
from repl_fx.training.data.standardising import channel_scale
from repl_fx.training.run import train_once
from repl_fx.training.schedules import train_in_phases
from repl_fx.training.train_config import TrainConfig

ROOT = Path(__file__).resolve().parent.parent
HEADING = "## Schedules"
PICTURES = 8000


@dataclass(frozen=True)
class Task:
    """A network and the data it is trained on.

    Attributes:
        name: in words.
        build: makes the network.
        data: the data.
        config: the settings of all runs; a third of the epochs is the unit of schedules.
    """

    name: str
    build: Callable[[], nn.Module]
    data: Data
    config: TrainConfig


def schedules(epochs: int) -> dict[str, dict[str, Any]]:
    """The settings of each schedule, by its name; those that need a surrogate."""
    first, second = epochs // 3, 2 * epochs // 3
    return {
        "replaced from the start": {},
        f"replaced after {first}": {"replace_at": first},
        f"replaced, restored after {second}": {"restore_at": second},
        f"replaced after {first}, restored after {second}": {"replace_at": first, "restore_at": second},
        "replaced from the start, neighbours detached": {"neighbours": "detach"},
        "replaced from the start, neighbours frozen": {"neighbours": "freeze"},
        f"replaced after {first}, neighbours frozen": {"replace_at": first, "neighbours": "freeze"},
    }


def digits(epochs: int = 9) -> Task:
    """Digits of 8x8 pixels."""
    data = load_data("digits")
    assert isinstance(data, Data)
    config = TrainConfig(epochs=epochs, batch_size=64, lr=4e-3, augment=False, device="cpu", log_every=1000)
    return Task("digits", lambda: vit(8, 1, patch=4, width=32, depth=5, heads=2), data, config)


def cifar(folder: Path, epochs: int = 6) -> Task:
    """CIFAR-10 of 16x16 pixels."""
    whole = thinned(load("cifar10", folder, 2), PICTURES, None)
    train, test = _halved(whole.train), _halved(whole.test)
    data = Data("cifar10", "classification", 10, (3, 16, 16), train, test, *channel_scale(train.main))
    config = TrainConfig(epochs=epochs, batch_size=64, lr=2e-3, augment=True, device="cpu", log_every=1000)
    return Task("CIFAR-10", lambda: vit(16, 3, patch=4, width=32, depth=5, heads=2), data, config)


def _halved(part: object) -> Tensors:
    """Pictures of half the size, by means of four pixels."""
    assert isinstance(part, Tensors)
    return Tensors(F.avg_pool2d(part.main.float(), 2).round().to(torch.uint8), part.targets)


def run(task: Task, surrogate: str, settings: Mapping[str, Any], seed: int) -> dict[str, float]:
    """Accuracy in % and CPU seconds of one run; the surrogate is empty for the network as it is."""
    torch.manual_seed(seed)
    model, config = task.build(), task.config.changed(seed=seed, **settings)
    inputs = torch.zeros(2, *task.data.shape)
    result = repl_fx.transform(model, (inputs,), surrogate=surrogate, seed=seed) if surrogate else None
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        if result is not None and config.is_scheduled:
            made = train_in_phases(result, task.data, config, Path(folder))
        else:
            made = train_once(model if result is None else result.model, task.data, config, Path(folder))
        took = time.process_time() - began
    return {"accuracy": 100 * made.figures["accuracy"], "seconds": took}


def plan(task: Task, surrogates: Sequence[str] = ("blend",)) -> list[tuple[str, str, dict[str, Any]]]:
    """The rows of the table: name, surrogate and settings."""
    rows: list[tuple[str, str, dict[str, Any]]] = [("original", "", {}), ("depth-pruned", "identity", {})]
    for surrogate in surrogates:
        rows += [(f"`{surrogate}`, {name}", surrogate, found) for name, found in schedules(task.config.epochs).items()]
    return rows


def table(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows of a task: mean, least and most over seeds, and the mean of the seconds."""
    lines = ["| schedule | accuracy, % | least and most | CPU seconds |", "|---|--:|--:|--:|"]
    for name in dict.fromkeys(record["name"] for record in records):
        found = [record for record in records if record["name"] == name]
        scores = [record["accuracy"] for record in found]
        mean, seconds = statistics.mean(scores), statistics.mean(record["seconds"] for record in found)
        lines.append(f"| {name} | {mean:.2f} | {min(scores):.2f} to {max(scores):.2f} | {seconds:.0f} |")
    return lines


def section(records: Sequence[Mapping[str, Any]], notes: str) -> str:
    """The section of docs/results.md: facts, a table for each task, and what was written below them by hand."""
    parts = [HEADING, ""]
    facts = dict.fromkeys((record["machine"], record["versions"]) for record in records)
    seeds = len({record["seed"] for record in records})
    parts += [
        "`python -m benchmarks.schedules`: the ViT of examples/ with 5 blocks of width 32, every second one replaced, "
        f"{seeds} seeds,",
        "one thread of " + "; ".join(f"{machine}, {versions}" for machine, versions in facts) + ". `--replace-at` and "
        "`--restore-at` are the",
        "epochs in the names.",
        "",
    ]
    for task in dict.fromkeys(record["task"] for record in records):
        found = [record for record in records if record["task"] == task]
        parts += [f"{task}, {found[0]['epochs']} epochs:", "", *table(found), ""]
    return "\n".join(parts) + notes


def written(page: str, records: Sequence[Mapping[str, Any]]) -> str:
    """The page with the section, in the place of the one before; the list below its tables stays."""
    before, found, rest = page.partition(f"{HEADING}\n")
    if not found:
        return f"{page.rstrip()}\n\n{section(records, '')}"
    old, behind, after = rest.partition("\n## ")
    notes = old[old.index("\n- ") + 1 :] if "\n- " in old else ""
    return f"{before}{section(records, notes.rstrip() + chr(10) * bool(notes))}{behind}{after}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run what has not been run, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="directory with cifar10.npz (default: the digits)")
    parser.add_argument("--epochs", type=int, help="in place of the task's")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--surrogates", nargs="+", default=["blend"], metavar="KEY", help="default: blend")
    parser.add_argument("--only", default="", help="rows whose names have this in them")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "schedules" / "runs.jsonl")
    parser.add_argument("--docs", type=Path, help="directory of results.md, whose section is written")
    options = parser.parse_args(argv)
    if options.docs and not (options.docs / "results.md").is_file():
        parser.error(f"{options.docs} has no results.md, of which a section is written")
    torch.set_num_threads(1)
    epochs = {} if options.epochs is None else {"epochs": options.epochs}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    records = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    try:
        task = digits(**epochs) if options.data is None else cifar(options.data, **epochs)
        facts = {"task": task.name, "epochs": task.config.epochs, "machine": cpu_model()}
        facts["versions"] = ", ".join(f"{name} {found}" for name, found in installed(("torch", "repl-fx")).items())
        done = {(record["task"], record["name"], record["seed"]) for record in records}
        for seed in range(options.seeds):
            for name, surrogate, settings in plan(task, options.surrogates):
                if options.only in name and (task.name, name, seed) not in done:
                    record = {**facts, "name": name, "seed": seed, **run(task, surrogate, settings, seed)}
                    records.append(record)
                    with options.out.open("a") as file:
                        file.write(json.dumps(record) + "\n")
                    print(f"{seed} {name}: {record['accuracy']:.2f} % in {record['seconds']:.0f} s", flush=True)
    except ReplFxError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    order = [name for name, *_ in plan(task, options.surrogates)]
    records.sort(key=lambda record: order.index(record["name"]) if record["name"] in order else len(order))
    print("\n".join(table([record for record in records if record["task"] == task.name])))
    if options.docs is not None:
        page = options.docs / "results.md"
        page.write_text(written(page.read_text(), records))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What is left of a trained network when it is cut to a budget, without training and after a short one.

    python -m benchmarks.trained --data DIR                          all networks of the scale for this machine
    python -m benchmarks.trained --data DIR --only '*/vit' --scale cpu --seeds 1
    python -m benchmarks.trained --report                            docs/trained.md from what was run

Networks are trained once, from each seed, and their weights kept below `--out`. Each is cut to shares of its FLOPs by
each method (`benchmarks.compression.methods`), evaluated, and healed for 1 % and 10 % of the steps of its training,
by the same recipe for all: the original's logits and the targets, at a tenth of the learning rate. Time is that of a
call of the exported network with 32 inputs, in turns with the original. Each run is a line of `--out`/trained.jsonl,
where a run that is there is not done again: a copy of docs/trained.jsonl there goes on from what was published.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.compression.call_time import time_ratio
from benchmarks.compression.methods import Cut, methods
from benchmarks.compression.originals import Original, original
from benchmarks.compression.trained_report import write_report
from benchmarks.training.tasks import SCALES, tasks
from repl_fx.benchmarking.hardware import installed
from repl_fx.environment.machine import cpu_model
from repl_fx.errors import ReplFxError, first_line
from repl_fx.training.run import evaluate, train_once

ROOT = Path(__file__).resolve().parent.parent
SHARES = (0.9, 0.75, 0.5)
# Shares of the steps of the training from scratch.
HEALING = (0.01, 0.1)
# Of the learning rate of that.
RATE = 0.1


def evaluated(own: Original, model: nn.Module) -> float:
    """The figure that says how good a model is, on what is held out."""
    figures = evaluate(model, own.data, own.config)
    return figures[own.best]


def healed(own: Original, cut: Cut, share: float) -> float:
    """The same after a short training against the original."""
    steps = max(1, round(share * own.steps))
    config = own.config.changed(
        steps=steps, lr=own.config.lr * RATE, teacher="original", target_weight=1.0, label_smoothing=0.0
    )
    with tempfile.TemporaryDirectory() as place:
        figures = train_once(cut.model, own.data, config, Path(place), teacher=own.copy()).figures
    return figures[own.best]


def run(own: Original, method: str, share: float, seed: int, healing: Sequence[float]) -> dict[str, Any]:
    """Cut, evaluate and heal; a method that has no such network says why."""
    try:
        cut = methods()[method](own, share, seed)
        found: dict[str, Any] = {
            "flops": cut.flops,
            "blocks": cut.blocks,
            "parameters": sum(parameter.numel() for parameter in cut.model.parameters()),
            "cut": evaluated(own, cut.model),
            "time": time_ratio(own, cut.shipped or cut.model),
        }
        state = {name: value.clone() for name, value in cut.model.state_dict().items()}
        for part in healing:
            cut.model.load_state_dict(state)
            found[f"healed {part:g}"] = healed(own, cut, part)
    except (ReplFxError, RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError) as problem:
        # Another tool may end in any of these.
        return {"reason": f"{type(problem).__name__}: {first_line(problem)}"}
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run what has not been run, or write the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT / "build" / "data", help="directory of the data sets")
    parser.add_argument("--download", action="store_true", help="fetch data sets that are not there")
    parser.add_argument("--scale", choices=SCALES, default="gpu" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", default="*", metavar="GLOB", help="networks, such as 'cifar10/vit'")
    parser.add_argument("--methods", nargs="+", default=["*"], metavar="GLOB", help="methods, such as 'linear*'")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="of the FLOPs")
    parser.add_argument("--healing", type=float, nargs="*", default=HEALING, help="shares of the steps of training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--out", type=Path, default=ROOT / "build" / "trained", help="where results and weights are kept"
    )
    parser.add_argument("--report", action="store_true", help="run nothing; write trained.md and trained.svg")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the report goes")
    given = parser.parse_args(argv)
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / "trained.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    if given.report:
        order = ["original", *methods()]
        write_report(sorted(records, key=lambda record: order.index(record["method"])), given.docs)
        return 0
    torch.set_num_threads(1)
    done = {(r["scale"], r["network"], r["method"], r["share"], r["seed"]) for r in records}
    facts = {"scale": given.scale, "machine": cpu_model(), "versions": installed(("torch", "repl-fx"))}
    try:
        for name, task in tasks(given.scale).items():
            if not fnmatch.fnmatchcase(name, given.only):
                continue
            data = task.load(given.data, download=given.download)
            chosen = [one for one in methods() if any(fnmatch.fnmatchcase(one, glob) for glob in given.methods)]
            wanted = [("original", 1.0), *((method, share) for share in given.shares for method in chosen)]
            for seed in range(given.seeds):
                left = [one for one in wanted if (given.scale, name, *one, seed) not in done]
                if not left:
                    # Records may come from elsewhere, without the weights.
                    continue
                own = original(task, data, seed, given.out / "weights" / given.scale)
                for method, share in left:
                    found = _original(own) if share == 1 else run(own, method, share, seed, given.healing)
                    record = {**facts, "network": name, "method": method, "share": share, "seed": seed, **found}
                    with file.open("a") as lines:
                        lines.write(json.dumps(record) + "\n")
                    print(_line(record), flush=True)
    except ReplFxError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    return 0


def _original(own: Original) -> dict[str, Any]:
    return {
        "flops": 1.0,
        "blocks": 0,
        "parameters": sum(parameter.numel() for parameter in own.model.parameters()),
        "cut": evaluated(own, own.model),
        "time": 1.0,
        "best": own.best,
        "higher_is_better": own.higher_is_better,
        "steps": own.steps,
    }


def _line(record: Mapping[str, Any]) -> str:
    named = f"{record['network']} {record['share']:g} {record['method']}, seed {record['seed']}"
    if "reason" in record:
        return f"{named}: {record['reason']}"
    figures = [f"{name} {value:.4f}" for name, value in record.items() if name == "cut" or name.startswith("healed")]
    return f"{named}: FLOPs {record['flops']:.3f}, {', '.join(figures)}"


if __name__ == "__main__":
    sys.exit(main())

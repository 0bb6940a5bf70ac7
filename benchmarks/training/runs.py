"""Single runs of the benchmark of accuracy: which variant of which task under which seed, and what came of it."""

from __future__ import annotations

import csv
import gc
import json
import os
import statistics
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.training.tasks import Task, tasks
from benchmarks.training.variants import FULL, STOCHASTIC, Variant, pruned, rewritten
from repl_fx.benchmarking import hardware
from repl_fx.errors import BadInput
from repl_fx.planning.policies import policy_of
from repl_fx.training.data.data_set import Data, length
from repl_fx.training.loading import loaders
from repl_fx.training.run import LOGS, STATE, train_once
from repl_fx.training.train_config import TrainConfig

WHOLE = {"full": FULL, "stochastic-depth": STOCHASTIC}
SURROGATES = (
    "identity",
    "auto",
    "auto:weights=own",
    "blend:per=tensor",
    "blend:per=channel",
)
DEFAULT_VARIANTS = ("full", *(f"{surrogate}@{every}" for every in (2, 3) for surrogate in SURROGATES))
# The settings of a training that reports name.
RECIPE = (
    "epochs",
    "batch_size",
    "optimizer",
    "lr",
    "weight_decay",
    "warmup",
    "clip",
    "label_smoothing",
    "precision",
)
# Of the logged losses, the share whose mean is the final training loss.
LAST = 0.05


def parse_variant(text: str) -> Variant:
    """The variant of a specification: `full`, `stochastic-depth` or `KEY[:name=value,...][@every]`.

    Args:
        text: the key of a surrogate, its settings (numbers, `true`, `false` and `null` are those of JSON, all else is a
            string), and which blocks it replaces: every 2nd where it does not say.

    Raises:
        BadInput: the text is no such specification, or the surrogate has no such setting.
        UnknownSurrogate: there is no such surrogate.
    """
    if text in WHOLE:
        return WHOLE[text]
    head, at, every = text.partition("@")
    if at and not (every.isdecimal() and int(every) > 1):
        raise BadInput(f"variant {text!r} ends in @{every}; write a number of 2 or more there, like @3")
    key, colon, rest = head.partition(":")
    settings: dict[str, Any] = {}
    for item in rest.split(",") if colon else ():
        name, equals, value = item.partition("=")
        if not (key and name and equals and value) or name in settings:
            raise BadInput(f"variant {text!r}: {item!r} is no setting; write it like bottleneck:ratio=0.5,width=8@2")
        settings[name] = _value(value)
    # Raises where there is no such surrogate, or no such setting.
    policy_of(key, settings)
    number = int(every) if at else 2
    return pruned(number) if (key, settings) == ("identity", {}) else rewritten(key, number, **settings)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        scale, task: what is trained.
        variant: its specification.
        seed: of the network's first parameters, the surrogates', and the order of the data.
        device: `cpu` or `cuda`.
        epochs: instead of those of the task.
        compiled: mode of torch.compile.
    """

    scale: str
    task: str
    variant: str
    seed: int
    device: str
    epochs: int | None = None
    compiled: str | None = None

    @property
    def what(self) -> Task:
        """The task."""
        return tasks(self.scale)[self.task]

    @property
    def config(self) -> TrainConfig:
        """The settings of the training, which the variant has no influence on."""
        precision = "bfloat16" if self.device == "cuda" else "float32"
        return self.what.config.changed(seed=self.seed, device=self.device, precision=precision, epochs=self.epochs)

    def settings(self) -> dict[str, Any]:
        """All that decides what comes out, as plain data: two runs with the same settings are the same run."""
        variant = parse_variant(self.variant)
        chosen = {"name": variant.name, "surrogate": variant.surrogate, "settings": dict(variant.settings)}
        return {
            "scale": self.scale,
            "task": self.task,
            "network": self.what.about,
            "recipe": {name: getattr(self.config, name) for name in RECIPE},
            "device": self.device,
            "compiled": self.compiled,
            "variant": chosen | {"every": None if variant.surrogate is None else variant.every},
            "seed": self.seed,
        }

    def key(self) -> str:
        """The settings as text."""
        return json.dumps(self.settings(), sort_keys=True)


def build(task: Task, variant: Variant, example: Any, seed: int) -> tuple[nn.Module, list[str]]:
    """A variant of a network on the CPU, in training mode, and the names of the blocks that it replaces.

    The whole network is made first: what the variants share begins with the same values.
    """
    torch.manual_seed(seed)
    model = task.build()
    with warnings.catch_warnings():
        # torch.export's; what cannot be captured raises.
        warnings.simplefilter("ignore")
        if variant.surrogate is None:
            return variant.build(model, (example,), seed), []
        result = variant.rewrite(model, (example,), seed)
    return result.module.train(), [replacement.block for replacement in result.plan.replacements]


def perform(run: Run, folder: Path, workers: int = 1) -> dict[str, Any]:
    """Train and evaluate once.

    Args:
        run: what to train.
        folder: of the data.
        workers: how many runs share the machine, for the record.

    Returns:
        The record: `settings`, `environment`, `data`, and either `result` or `error`, one line that says why there is
        none.

    Raises:
        BadInput: the data cannot be read.
    """
    begin = time.perf_counter()
    if run.device == "cpu":
        torch.set_num_threads(1)
    data = run.what.load(folder)
    record: dict[str, Any] = {"settings": run.settings(), "environment": environment(run.device, workers)}
    record["data"] = _facts(data)
    try:
        record["result"] = _result(run, data)
    except Exception as problem:  # whatever it is, the other runs go on
        record["error"] = " ".join(f"{type(problem).__name__}: {problem}".split())[:300]
    return record | {"seconds": round(time.perf_counter() - begin, 2)}


def _facts(data: Data) -> dict[str, Any]:
    """Numbers of inputs, and the shape of one."""
    shape = "x".join(map(str, data.shape))
    return {"training inputs": length(data.train), "held-out inputs": length(data.test), "shape": shape}


def _result(run: Run, data: Data) -> dict[str, Any]:
    # What earlier runs left behind is no part of this one.
    gc.collect()
    torch.compiler.reset()
    _, held_out = loaders(data, run.config, torch.device("cpu"))
    example = next(iter(held_out))[0][:2]
    model, replaced = build(run.what, parse_variant(run.variant), example, run.seed)
    if run.compiled is not None:
        model.compile(mode=run.compiled)
    with tempfile.TemporaryDirectory() as folder:
        trained = train_once(model, data, run.config, Path(folder))
        train_loss = _final_loss(Path(folder) / STATE / LOGS)
    assert trained.inputs_per_second is not None
    named = {"bits" if name == "bits_per_byte" else name: value for name, value in trained.figures.items()}
    return {
        **named,
        "train_loss": train_loss,
        "step_ms": 1000 * run.config.batch_size / trained.inputs_per_second,
        "parameters": trained.parameters,
        "replaced": replaced,
        "memory_mib": trained.memory_mib,
    }


def _final_loss(logs: Path) -> float:
    """The mean loss of the last logged steps of a training."""
    (log,) = logs.glob("*/metrics.csv")
    with log.open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]
    return statistics.mean(losses[-max(1, round(LAST * len(losses))) :])


def environment(device: str, workers: int) -> dict[str, Any]:
    """What a reader needs to compare numbers."""
    named = hardware.device_name(torch.device(device))
    where = f"one {named}" if device == "cuda" else f"{named}, {os.cpu_count()} cores, one thread a run"
    versions = {name: hardware.environment()[name] for name in ("python", "torch", "repl_fx")}
    return {"machine": where, **versions, "workers": workers}

"""Single runs of the benchmark of accuracy: which variant of which task under which seed, and what came of it."""

from __future__ import annotations

import functools
import gc
import json
import os
import platform
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import repl_fx
from benchmarks.training.data import Data
from benchmarks.training.recipe import evaluate, train
from benchmarks.training.tasks import Task, tasks
from benchmarks.training.variants import FULL, STOCHASTIC, Variant, pruned, rewritten
from repl_fx.benchmarking.machine import cpu_model
from repl_fx.errors import BadInput
from repl_fx.surrogates import make_surrogate

WHOLE = {"full": FULL, "stochastic-depth": STOCHASTIC}
SURROGATES = (
    "identity",
    "auto",
    "auto:weights=own",
    "blend:per=tensor",
    "blend:per=channel",
)
DEFAULT_VARIANTS = ("full", *(f"{surrogate}@{every}" for every in (2, 3) for surrogate in SURROGATES))
# It divides the numbers of test pictures and windows, so that no batch is smaller than the others.
TEST_BATCH = 500


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
    make_surrogate(key, settings)
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
        epochs: instead of those of the recipe; steps for a text.
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
        """The task, of the length asked for."""
        task = tasks(self.scale)[self.task]
        return task if self.epochs is None else task.shortened(self.epochs)

    def settings(self) -> dict[str, Any]:
        """All that decides what comes out, as plain data: two runs with the same settings are the same run."""
        variant = parse_variant(self.variant)
        chosen = {"name": variant.name, "surrogate": variant.surrogate, "settings": dict(variant.settings)}
        return {
            "scale": self.scale,
            "task": self.task,
            "network": self.what.about,
            "recipe": asdict(self.what.recipe),
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


# Runs come task by task, so one is enough.
@functools.lru_cache(maxsize=1)
def _load(scale: str, task: str, folder: Path, device: str) -> Data:
    return tasks(scale)[task].load(folder, device)


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
    data = _load(run.scale, run.task, folder, run.device)
    record: dict[str, Any] = {"settings": run.settings(), "environment": environment(run.device, workers)}
    record["data"] = data.facts()
    try:
        record["result"] = _result(run, data)
    except Exception as problem:  # whatever it is, the other runs go on
        record["error"] = " ".join(f"{type(problem).__name__}: {problem}".split())[:300]
    return record | {"seconds": round(time.perf_counter() - begin, 2)}


def _result(run: Run, data: Data) -> dict[str, Any]:
    gpu = run.device == "cuda"
    # What earlier runs left behind is no part of this one.
    gc.collect()
    torch.compiler.reset()
    before = torch.cuda.memory_allocated() if gpu else 0
    example = next(iter(data.test(2)))[0].cpu()
    model, replaced = build(run.what, parse_variant(run.variant), example, run.seed)
    model.to(run.device)
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    trained = train(model, data, run.what.recipe, run.seed, run.device, run.compiled)
    # Without the data, which takes the same in all variants.
    memory = (torch.cuda.max_memory_allocated() - before) / 2**20 if gpu else None
    tested = evaluate(model, data, TEST_BATCH, run.device)
    return {
        **tested,
        **trained,
        "parameters": sum(p.numel() for p in model.parameters()),
        "replaced": replaced,
        "memory_mib": memory,
    }


def environment(device: str, workers: int) -> dict[str, Any]:
    """What a reader needs to compare numbers."""
    if device == "cuda":
        chip = torch.cuda.get_device_properties(0)
        machine = f"one {chip.name} with {chip.total_memory / 2**30:.0f} GiB"
    else:
        machine = f"{cpu_model()}, {os.cpu_count()} cores, one thread a run"
    return {
        "machine": machine,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "repl_fx": repl_fx.__version__,
        "workers": workers,
    }

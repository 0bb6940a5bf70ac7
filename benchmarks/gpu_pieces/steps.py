"""The pieces about a step of training: its time and memory, the largest batch, the kernels it spends its time in."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from benchmarks.gpu_pieces.networks import network
from benchmarks.gpu_pieces.setting import (
    COMPILED,
    CONVNEXT,
    GPT12,
    LLAMA,
    RECOMMENDED,
    RESNET50,
    SWIN,
    VIT_BASE,
    Record,
    Setting,
)
from benchmarks.step_cost import DTYPES, Bench, Budget
from benchmarks.training import step
from benchmarks.training.cost_tables import TARGET_DTYPE, Group
from benchmarks.training.models import Network
from benchmarks.training.step import trainer_of
from benchmarks.training.variants import CHECKPOINTED, FULL, Variant, pruned, rewritten
from repl_fx.benchmarking.hardware import of_device
from repl_fx.benchmarking.training import Trainer, clear_memory
from repl_fx.errors import ForeignError, foreign_code, one_line
from repl_fx.surrogates import known_surrogates

# Batches that keep a large GPU busy and leave room for another piece on it.
BATCHES = {VIT_BASE: 256, RESNET50: 256, GPT12: 16, SWIN: 128, CONVNEXT: 128, LLAMA: 4}
ROUNDS, TOY_BATCH, LARGEST = 20, 4, 4096
# Of the device's memory, for the largest batch: other pieces use the rest.
MEMORY_SHARE = 0.25
# A policy of others, the floor, and those of which a piece of their own is made.
_NO_SURROGATES = ("auto", "identity", "trained")
KERNELS, PROFILED = 10, 3


def variants(which: str, every: int, *, control: bool) -> list[Variant]:
    """The variants of a piece: the recommended surrogate, with its control or not, or all other surrogates."""
    floor, recommended = pruned(every), rewritten("auto", every)
    if which == RECOMMENDED:
        own = [rewritten("auto", every, weights="own")] if control else []
        # The targets' own first: a run may end early.
        return [floor, recommended, CHECKPOINTED, FULL, *own]
    keys = [key for key in known_surrogates() if key not in _NO_SURROGATES]
    return [FULL, floor, *(rewritten(key, every) for key in keys)]


def step_cost(setting: Setting, name: str, mode: str, every: int, which: str) -> Record:
    """Time and memory of a step in bfloat16."""
    own = network(name, setting.scale)
    batch = _batch(setting, name)
    about = of_device(setting.device) | {"clock": "CUDA events" if setting.device.type == "cuda" else "the wall clock"}
    about |= {"command": "python -m benchmarks.gpu"}
    group = Group(name, mode, TARGET_DTYPE, batch, about)

    def save(filled: Group) -> None:
        setting.save({"group": asdict(filled)})

    rounds = 2 if setting.toy else ROUNDS
    budget = Budget(0.9 * setting.seconds)
    bench = Bench(own, batch, setting.device, "wall", rounds, budget, save, setting.alone)
    # Traced and no more: a C++ compiler takes minutes, whatever the size of the model.
    quick = patch.object(step, "compile_", partial(step.compile_, backend="eager"))
    with quick if setting.toy else nullcontext():
        bench.measure(group, variants(which, every, control=not setting.toy))
    return {"group": asdict(group)}


def largest_batches(setting: Setting, name: str, every: int, which: str) -> Record:
    """The largest batch that a step of each variant takes in a share of the memory, within an eighth."""
    own = network(name, setting.scale)
    about: Record = {}
    if setting.device.type == "cuda":
        # By number: of `cuda` alone it does not take the current one.
        torch.cuda.set_per_process_memory_fraction(MEMORY_SHARE, setting.device.index or 0)
        about["GiB"] = MEMORY_SHARE * torch.cuda.get_device_properties(setting.device).total_memory / 2**30
    found: dict[str, int | str] = {}
    # Those of the target first: a run may end early.
    chosen = variants(which, every, control=False)
    for variant in sorted(chosen, key=lambda one: one != FULL and one.surrogate != "auto"):
        found[variant.name] = _attempt(partial(_largest, setting, own, variant))
        setting.save({"largest": found} | about)
    return {"largest": found} | about


def kernels(setting: Setting, name: str, mode: str, every: int) -> Record:
    """The kernels that a step of each variant spends most of its time in, by torch.profiler."""
    own = network(name, setting.scale)
    batch = _batch(setting, name)
    found: dict[str, list[dict[str, Any]] | str] = {}
    for variant in (rewritten("auto", every), pruned(every), FULL):
        found[variant.name] = _attempt(partial(_profiled, setting, own, variant, batch, mode == COMPILED))
        setting.save({"batch": batch, "kernels": found})
    return {"batch": batch, "kernels": found}


def _attempt(work: Callable[[], Any]) -> Any:
    """What some work returns; one line where it fails."""
    try:
        with foreign_code():
            return work()
    except ForeignError as failed:
        return one_line(failed.problem)


def _batch(setting: Setting, name: str) -> int:
    return TOY_BATCH if setting.toy else BATCHES[name]


def _largest(setting: Setting, own: Network, variant: Variant) -> int:
    if setting.toy:
        return TOY_BATCH
    module = _built(own, variant)
    with setting.beside():
        return largest(partial(_takes, setting.device, own, module), LARGEST)


def largest(takes: Callable[[int], bool], limit: int) -> int:
    """The largest number up to a limit that is taken, within an eighth; 0 where none is."""
    low, high = 0, 1
    while high <= limit and takes(high):
        low, high = high, 2 * high
    if high > limit:
        return low
    while high - low > max(1, low // 8):
        middle = (low + high) // 2
        low, high = (middle, high) if takes(middle) else (low, middle)
    return low


def _takes(device: torch.device, own: Network, module: nn.Module, batch: int) -> bool:
    """Tell whether there is memory for two steps with so many inputs."""
    clear_memory(device)
    try:
        # One input again and again: to draw thousands on the host takes longer than the steps.
        one = own.inputs(1).to(device)
        inputs = one.expand(batch, *one.shape[1:]).contiguous()
        trainer = trainer_of(module, False, DTYPES[TARGET_DTYPE], (inputs, own.targets(inputs)))
        trainer.load()
        for _ in range(2):
            float(trainer.step())
    except torch.OutOfMemoryError:
        return False
    except RuntimeError as problem:
        # What libraries of CUDA say of the same.
        if "ALLOC_FAILED" not in str(problem):
            raise
        return False
    return True


def _built(own: Network, variant: Variant) -> nn.Module:
    torch.manual_seed(0)
    return variant.build(own.build(), (own.inputs(2),))


def _profiled(setting: Setting, own: Network, variant: Variant, batch: int, compiled: bool) -> list[dict[str, Any]]:
    clear_memory(setting.device)
    inputs = own.inputs(batch).to(setting.device)
    trainer = trainer_of(_built(own, variant), compiled, DTYPES[TARGET_DTYPE], (inputs, own.targets(inputs)))
    trainer.load()
    for _ in range(PROFILED):
        trainer.step()
    with setting.alone():
        return _of_steps(setting, trainer)


def _of_steps(setting: Setting, trainer: Trainer) -> list[dict[str, Any]]:
    cuda = setting.device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CUDA if cuda else torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(PROFILED):
            trainer.step()
        if cuda:
            torch.cuda.synchronize(setting.device)
    return most_expensive(profile.key_averages(), "self_device_time_total" if cuda else "self_cpu_time_total")


def most_expensive(events: Sequence[Any], time: str) -> list[dict[str, Any]]:
    """The names of the events of the most time, with their calls, milliseconds and share of it, all of one step."""
    total = sum(getattr(event, time) for event in events) or 1
    first = sorted(copy.copy(list(events)), key=lambda event: getattr(event, time), reverse=True)[:KERNELS]
    return [
        {
            "name": event.key,
            "calls": event.count / PROFILED,
            "ms": getattr(event, time) / 1e3 / PROFILED,
            "share": getattr(event, time) / total,
        }
        for event in first
    ]

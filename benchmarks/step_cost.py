"""What a training step and an evaluation cost: the full model, surrogates, depth pruning, checkpointing and the like.

    python -m benchmarks.step_cost                                      on CUDA where there is one, else on the CPU
    python -m benchmarks.step_cost --models vit_base --variants 'full*' '*every=2' --budget-s 540 --json vit.json
    python -m benchmarks.step_cost --merge vit.json resnet.json --docs docs --json step_cost.json

On CUDA the networks are ResNet-50, ResNet-110 for CIFAR, ViT-S and ViT-B at 224 pixels and a GPT of 12 layers, eager
and compiled; on a CPU small ones of the same kinds, eager, as compiling takes half a minute a variant there. The
variants of one network in one mode and dtype take turns, in another order every round, and are compared with one
another; `--modes evaluation` times a forward pass without gradients in their place, at `--evaluated` inputs:

    full                      the model as it is
    full, checkpointed        each block computed again in the backward pass (torch.utils.checkpoint)
    stochastic depth          blocks left out at random; compiled block by block, as no one graph has random branches
    depth-pruned, every=k     every k-th block of a repeat taken out (`identity`): the floor for time and memory
    auto, every=k             what is recommended in its place: `coarse` for vision transformers, `reuse` for language
                              models, `slim` for convolutions
    auto (weights=own)        the control: the same thin layers with weights of their own, not made from the neighbours'
    auto in place, every=k    the same in the source's own modules (`result.model`), and not in one graph
    blocks taken out by hand  the floor of that: the source's own class with nn.Identity where the blocks were
    KEY, every=k              any other surrogate that is registered, with its default settings
    …, folded                 in evaluation: with weights that are constants, and not made in each forward pass

One recipe for all: a fixed random batch, cross entropy, fused AdamW on float32 parameters. Float32 means float32, TF32
is off; bfloat16 means `torch.autocast`. torch.compile gets the module, in one graph, not the loss and the optimizer.

    time       seconds of the forward pass with the loss, of the backward pass, and of AdamW with the clearing of the
               gradients. On CUDA by events, with the step before of the same variant not waited for; on a CPU by the
               wall clock, or with `--clock cpu` in CPU seconds, which other load disturbs less. A ratio of times is the
               median of the ratios in each round.
    peak       most bytes that tensors took on the device during a step, by `torch.cuda.max_memory_allocated`, with
               only this variant there. There is no such count on a CPU, where this is left out.
    kept       bytes of the distinct storages that autograd saves in a forward pass, without parameters and buffers;
               with checkpointing, without what the backward pass then computes again. Ratios of memory are those of
               the peak, and of this where there is no peak. Of stochastic depth, both are the largest of five draws.
    params     number of parameters, tied ones once
    state      bytes of the state of AdamW

Everything is warmed up before it is measured. With `--json` what is measured is written as it comes, so that a run that
is killed loses nothing but its last round; `--budget-s` ends a run by itself. `--merge` puts files together; a group
that is in several is taken whole from the one with the most steps.

Targets, at every=2 in bfloat16, of ViT-B and ResNet-50 with each recommended surrogate: step time and peak memory at
most 1.05 times those of the floor, and both below those of the full model with checkpointing.

Exit status: 0; 1 with `--strict` where a target is missed; 2 where the device is not there.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import itertools
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

import repl_fx
from benchmarks.training import cost_tables as tables
from benchmarks.training.cost_tables import Group, Row
from benchmarks.training.models import Network, networks, small_networks
from benchmarks.training.step import trainer_of
from benchmarks.training.variants import CHECKPOINTED, FULL, STOCHASTIC, Variant, by_hand, in_place, pruned, rewritten
from repl_fx.benchmarking.hardware import of_device
from repl_fx.benchmarking.training import Sizes, Trainer, clear_memory, timed_steps
from repl_fx.errors import ForeignError, foreign_code, one_line
from repl_fx.planning.policies import known_surrogates, policy_of
from repl_fx.running.timing import CLOCKS, Mark, Timer, interleaved

DTYPES = {"float32": None, "bfloat16": torch.bfloat16}
EVALUATION = "evaluation"
MODES = ("eager", "compile", EVALUATION)
EVERY = (2, 3)
BATCHES = {"resnet50": 128, "resnet110": 512, "vit_small": 256, "vit_base": 128, "gpt12": 8}
SMALL_BATCHES = {"resnet32": 32, "vit": 32, "gpt": 4}
WARM_UP, DRAWS = 3, 5
# Of the seconds of a run, after which no further variant is made.
PREPARING = 2 / 3


# What `auto` comes to is measured as `auto`.
CHOSEN_FROM = ("identity", *(surrogate.key for surrogate in policy_of("auto").candidates[:-1]))


def all_variants() -> list[Variant]:
    """The variants, those to compare with first."""
    found = [FULL, CHECKPOINTED, STOCHASTIC]
    keys = [key for key in known_surrogates() if key not in CHOSEN_FROM]
    for every in EVERY:
        found += [pruned(every), *(rewritten(key, every) for key in keys), rewritten("auto", every, weights="own")]
        found += [by_hand(every), in_place("auto", every)]
    return found


class Budget:
    """Seconds that may pass; None for no end."""

    def __init__(self, seconds: float | None, now: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self.now = seconds, now
        self.begin = now()

    @property
    def spent(self) -> float:
        """Seconds that have passed."""
        return self.now() - self.begin

    @property
    def over(self) -> bool:
        """Whether no time is left."""
        return self.seconds is not None and self.spent >= self.seconds

    @property
    def late(self) -> bool:
        """Whether what is left is needed to time what there is."""
        return self.seconds is not None and self.spent >= PREPARING * self.seconds


@dataclass
class Bench:
    """One network on one device.

    Attributes:
        network: the network.
        batch: size of a batch.
        device: where it trains.
        clock: of `CLOCKS`.
        steps: rounds to time.
        budget: when to stop.
        save: called with a group each time there is more in it.
        alone: what to enter to have a device alone while steps are timed.
    """

    network: Network
    batch: int
    device: torch.device
    clock: str
    steps: int
    budget: Budget
    save: Callable[[Group], None]
    alone: Callable[[], AbstractContextManager[object]] = nullcontext
    _built: dict[str, nn.Module] = field(default_factory=dict)

    def measure(self, group: Group, variants: Sequence[Variant]) -> None:
        """Fill a group: sizes of one variant after another, then times in turns."""
        torch.manual_seed(0)
        inputs = self.network.inputs(self.batch).to(self.device)
        batch = (inputs, self.network.targets(inputs))
        trainers: dict[str, Trainer] = {}
        # cuDNN tries its algorithms for each size, which the warm-up pays for.
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=False):
            for variant in variants:
                if self.budget.late:
                    break
                floor = pruned(variant.every).name if variant.surrogate else None
                group.rows.append(Row(variant.name, floor))
                trainer = self._attempt(group.rows[-1], partial(self._sizes, variant, group, batch))
                clear_memory(self.device)
                if trainer is not None:
                    trainers[variant.name] = trainer
                self.save(group)
                what = f"{group.model}, {group.mode}, {group.dtype}: {variant.name}"
                print(f"{what} ready after {self.budget.spent:.0f} s", file=sys.stderr)
            waiting = self.budget.spent
            with self.alone():
                # To wait for the device costs no budget.
                self.budget.begin += self.budget.spent - waiting
                self._time(group, trainers)
        if group.mode == "compile":
            torch.compiler.reset()

    def evaluate(self, group: Group, variants: Sequence[Variant]) -> None:
        """Fill a group with times of forward passes in evaluation mode, of what is folded both ways."""
        torch.manual_seed(0)
        inputs = self.network.inputs(group.batch).to(self.device)
        timer = Timer(self.device, self.clock)
        turns: dict[str, Callable[[], dict[str, float]]] = {}
        for variant in variants:
            forms: dict[str, Callable[[nn.Module], nn.Module]] = {variant.name: copy.deepcopy}
            if variant.surrogate and variant.form == "graph":
                forms[f"{variant.name}, folded"] = repl_fx.fold
            for name, form in forms.items():
                group.rows.append(Row(name, pruned(variant.every).name if variant.surrogate else None))
                module = self._attempt(group.rows[-1], partial(self._evaluated, variant, form))
                if module is not None:
                    turns[name] = partial(_timed_forward, timer, module, inputs, DTYPES[group.dtype])
        rows = {name: row for name in turns if (row := group.row(name)) is not None}
        rounds = interleaved(
            turns,
            self.steps,
            warm_up=WARM_UP,
            attempt=lambda name, turn: self._attempt(rows[name], lambda row: turn()),
            over=lambda: self.budget.over,
        )
        self._keep(group, rounds)

    def _sizes(self, variant: Variant, group: Group, batch: tuple[Tensor, Tensor], row: Row) -> Trainer:
        """Fill in the sizes of a variant, alone on the device; hands back its trainer, on the host and warm."""
        clear_memory(self.device)
        row.before_bytes = torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else None
        trainer = trainer_of(self._module(variant), group.mode == "compile", DTYPES[group.dtype], batch)
        trainer.load()
        for _ in range(WARM_UP):
            loss = float(trainer.step())
        if not math.isfinite(loss):
            raise ValueError(f"the loss is {loss}")
        trainer.sizes = Sizes.of(trainer, DRAWS if variant.blocks == STOCHASTIC.blocks else 1)
        row.take(trainer.sizes)
        trainer.unload()
        return trainer

    def _evaluated(self, variant: Variant, form: Callable[[nn.Module], nn.Module], row: Row) -> nn.Module:
        return form(self._module(variant)).to(self.device).eval()

    def _module(self, variant: Variant) -> nn.Module:
        """The variant on the host, built once for all modes and dtypes."""
        if variant.name not in self._built:
            torch.manual_seed(0)
            self._built[variant.name] = variant.build(self.network.build(), (self.network.inputs(2),))
        return self._built[variant.name]

    def _time(self, group: Group, trainers: dict[str, Trainer]) -> None:
        """Time steps in turns; only whole rounds are kept."""
        rows = {name: row for name in trainers if (row := group.row(name)) is not None}
        rounds = timed_steps(
            trainers,
            Timer(self.device, self.clock),
            self.steps,
            warm_up=WARM_UP,
            attempt=lambda name, turn: self._attempt(rows[name], lambda row: turn()),
            over=lambda: self.budget.over,
        )
        self._keep(group, rounds)

    def _keep(self, group: Group, rounds: Iterable[dict[str, dict[str, float]]]) -> None:
        for times in rounds:
            for row in group.rows:
                row.steps += [times[row.variant]] if row.variant in times else []
            self.save(group)

    def _attempt(self, row: Row, work: Callable[[Row], Any]) -> Any:
        """What `work` makes of a row; None where it fails, which the row then says."""
        try:
            with foreign_code():
                return work(row)
        except ForeignError as failed:
            row.error = one_line(failed.problem)
            print(f"{row.variant}: {row.error}", file=sys.stderr)
        clear_memory(self.device)
        return None


def _timed_forward(timer: Timer, module: nn.Module, inputs: Tensor, autocast: torch.dtype | None) -> dict[str, float]:
    """The seconds of a forward pass without gradients."""

    def forward(mark: Mark) -> None:
        with torch.no_grad(), nullcontext() if autocast is None else torch.autocast(inputs.device.type, autocast):
            mark()
            module(inputs)
            mark()

    return {"forward": timer(forward)[0]}


def about_run(device: torch.device, clock: str, argv: Sequence[str]) -> dict[str, Any]:
    """What a reader needs to compare numbers: hardware, versions, clock, command."""
    return of_device(device) | {
        "clock": "CUDA events" if device.type == "cuda" else f"the {clock} clock",
        "load": os.getloadavg()[0],
        "command": f"python -m benchmarks.step_cost {shlex.join(argv)}".strip(),
    }


def run(options: argparse.Namespace, device: torch.device, console: Console, argv: Sequence[str]) -> list[Group]:
    """Measure what was asked for, printing and writing as it comes."""
    groups: list[Group] = []
    known, batches = networks() | small_networks(), BATCHES | SMALL_BATCHES
    about = about_run(device, options.clock, argv)
    variants = [v for v in all_variants() if any(fnmatch.fnmatchcase(v.name, glob) for glob in options.variants)]
    budget = Budget(options.budget_s)
    console.print(tables.describe(about), highlight=False)

    def save(group: Group) -> None:
        if options.json:
            tables.write_json(options.json, groups)

    bench: Bench | None = None
    for name, mode, dtype in itertools.product(options.models, options.modes, options.dtypes):
        if budget.over:
            break
        if bench is None or bench.network.name != name:
            batch = options.batch or batches[name]
            bench = Bench(known[name], batch, device, options.clock, options.steps, budget, save)
        for size in options.evaluated if mode == EVALUATION else (bench.batch,):
            groups.append(Group(name, mode, dtype, size, about))
            if mode == EVALUATION:
                bench.evaluate(groups[-1], [variant for variant in variants if variant.blocks is None])
            else:
                bench.measure(groups[-1], variants)
            tables.show(console, groups[-1])
    if budget.over:
        console.print(f"the {options.budget_s:g} s are spent; this is what there is", style="yellow", highlight=False)
    return groups


def main(argv: Sequence[str] | None = None) -> int:
    """Measure or merge, print, write; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    models = [*networks(), *small_networks()]
    parser = argparse.ArgumentParser(description="What a training step costs, next to depth pruning and checkpointing.")
    parser.add_argument("--device", help="cuda, cuda:1, cpu; by default CUDA where there is one")
    parser.add_argument("--models", nargs="+", choices=models, help="the large by default, on a CPU the small")
    parser.add_argument("--variants", nargs="+", default=["*"], metavar="GLOB", help="by name; all by default")
    parser.add_argument("--modes", nargs="+", choices=MODES, help="all by default, on a CPU without compile")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="both by default")
    parser.add_argument("--steps", type=int, help="rounds to time (default 20, on a CPU 5)")
    parser.add_argument("--batch", type=int, help="size of a batch, in place of each network's own")
    parser.add_argument("--evaluated", nargs="+", type=int, default=(1, 8), help="inputs in evaluation (default 1 8)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="on a CPU: wall-clock (default) or CPU seconds")
    parser.add_argument("--budget-s", type=float, help="stop after so many seconds, with what there is")
    parser.add_argument("--recommended", nargs="+", default=["auto"], help="for the targets (default auto)")
    parser.add_argument("--merge", nargs="+", type=Path, metavar="FILE", help="measure nothing, put files together")
    parser.add_argument("--json", type=Path, help="write the measurements to this file, as they come")
    parser.add_argument("--docs", type=Path, metavar="DIR", help="write DIR/step_cost.md")
    parser.add_argument("--strict", action="store_true", help="exit with 1 where a target is missed")
    options = parser.parse_args(argv)
    if options.docs:
        options.docs.mkdir(parents=True, exist_ok=True)
    console = Console(width=None if sys.stdout.isatty() else 210)
    if options.merge:
        groups = tables.merge(group for path in options.merge for group in tables.read_json(path))
        for group in groups:
            console.print(tables.describe(group.about), highlight=False)
            tables.show(console, group)
    else:
        device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        cuda = device.type == "cuda"
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as problem:
            print(f"device {device} is not there: {str(problem).splitlines()[0]}", file=sys.stderr)
            return 2
        options.models = options.models or list(networks() if cuda else small_networks())
        options.modes = options.modes or [mode for mode in MODES if cuda or mode != "compile"]
        options.steps = options.steps or (20 if cuda else 5)
        groups = run(options, device, console, argv)
    held = tables.targets(groups, options.recommended)
    for target in held:
        colour = {"PASS": "green", "MISSED": "red"}.get(target.status, "yellow")
        console.print(str(target), style=colour, highlight=False, markup=False)
    if not held:
        console.print("no target concerns what was measured")
    if options.json:
        tables.write_json(options.json, groups)
    if options.docs:
        (options.docs / "step_cost.md").write_text(tables.document(groups, options.recommended))
    return 1 if options.strict and any(target.status == "MISSED" for target in held) else 0


if __name__ == "__main__":
    sys.exit(main())

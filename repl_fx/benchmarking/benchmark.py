"""Measure a rewritten model side by side with the original, with depth pruning and with checkpointing.

Within each setting (training; inference at one batch size) the variants take turns: one repetition of each in every
round, in another order each time, after rounds of warm-up. A variant that cannot be measured is a row with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from numbers import Integral
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from repl_fx.arguments import require_items, require_kind, require_number
from repl_fx.benchmarking.hardware import of_device
from repl_fx.benchmarking.inference import COMPILED, EAGER, ONNX, Call, Prepared
from repl_fx.benchmarking.model_variants import Variant, variants_of
from repl_fx.benchmarking.results import (
    CHECKPOINTED,
    ORIGINAL,
    UNFOLDED,
    Benchmark,
    InferenceRow,
    TrainingRow,
    VariantRow,
)
from repl_fx.benchmarking.training import Sizes, Trainer, clear_memory, mean_squares, timed_steps
from repl_fx.display.progress import shown, stage
from repl_fx.errors import BadInput, ForeignError, ReplFxError, close_matches, foreign_code, one_line
from repl_fx.export.tensors import at_batch, flatten_inputs
from repl_fx.rewriting.result import HoldsResult, TransformResult, result_and_model
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.timing import Timer, interleaved, latency
from repl_fx.running.untouched import seeded
from repl_fx.sources import usable_device

_Made = TypeVar("_Made")
# A message may quote a whole graph.
_LONGEST = 300
_SAME = f"{CHECKPOINTED} computes in inference what the {ORIGINAL} does, and is measured in training alone"


@dataclass(frozen=True)
class Settings:
    """The settings of a measurement.

    Attributes:
        device: where everything runs: `cpu`, `cuda`, `cuda:1`.
        batch: inputs of a step of training; None for those of the example inputs.
        batch_sizes: inputs of a call in inference; None for 1 and `batch`.
        rounds: rounds that count.
        warm_up: rounds, and steps of training, before those.
        training, inference: whether to measure them.
        compiled, onnx: whether inference is measured compiled, and by ONNX Runtime.
        seed: of inputs that are drawn for another batch, and of dropout.

    Raises:
        BadInput: a number of inputs or rounds that is none, or nothing to measure.
    """

    device: str = "cpu"
    batch: int | None = None
    batch_sizes: tuple[int, ...] | None = None
    rounds: int = 10
    warm_up: int = 2
    training: bool = True
    inference: bool = True
    compiled: bool = True
    onnx: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        require_items("batch_sizes", self.batch_sizes or (), Integral, "numbers of inputs, such as (1, 8)")
        for name, number, least in (
            ("batch", 1 if self.batch is None else self.batch, 1),
            ("rounds", self.rounds, 1),
            ("warm_up", self.warm_up, 0),
            ("seed", self.seed, -math.inf),
            *(("batch_sizes", size, 1) for size in self.batch_sizes or ()),
        ):
            require_number(name, number, least=least)
        if not (self.training or self.inference):
            raise BadInput("neither training nor inference is to be measured; choose one")
        if str(self.device).partition(":")[0] not in ("cpu", "cuda"):
            raise BadInput(f"device {self.device!r} cannot be timed; choose cpu or cuda")

    @property
    def runtimes(self) -> tuple[str, ...]:
        """The runtimes of inference."""
        return (EAGER, *((COMPILED,) if self.compiled else ()), *((ONNX,) if self.onnx else ()))


@shown("bench")
def bench(
    model: TransformResult | HoldsResult,
    settings: Settings | None = None,
    *,
    inputs: ExampleInputs | None = None,
    progress: Callable[[str], None] | None = None,
    **changed: Any,
) -> Benchmark:
    """Measure a rewritten model next to the original, to depth pruning and to activation checkpointing.

    Args:
        model: what `transform`, `compress` or `load_artifact` returned, on the host; it is not changed.
        settings: how to measure.
        inputs: example inputs, in the batch that training has by default; those of the result by default.
        progress: called with the name of each stage as it begins, in place of a bar (`REPL_FX_PROGRESS`).
        **changed: single settings, such as `rounds=5, onnx=False`; see `Settings`.

    Raises:
        BadInput: a setting that is none, example inputs that have not the batch size that was asked for, or nothing
            that could be measured: says why.
    """
    result, rewritten = result_and_model(model)
    if result is None:
        raise BadInput(f"bench takes what transform or compress returned, and this is a {type(model).__name__}")
    known = [one.name for one in fields(Settings)]
    if unknown := next((name for name in changed if name not in known), None):
        raise BadInput(f"bench has no setting {unknown!r}{close_matches(unknown, known)}; it has {', '.join(known)}")
    settings, inputs = settings or Settings(), inputs or result.inputs
    require_kind(settings, Settings, "bench takes for settings repl_fx.benchmarking.benchmark.Settings(…)")
    require_kind(inputs, ExampleInputs, "bench takes for inputs ExampleInputs.of(args, kwargs)")
    settings = replace(settings, **changed)
    run = _BenchmarkRun(result, rewritten, inputs, settings)
    with seeded(run.device, settings.seed):
        trained = run.training() if settings.training else ()
        inferred = run.inference() if settings.inference else ()
    measured = Benchmark(
        of_device(run.device),
        {**asdict(settings), "batch": run.batch},
        trained,
        inferred,
        (_SAME,) if settings.inference else (),
    )
    if not any(row.samples for row in measured.rows):
        row = measured.rows[0]
        raise BadInput(f"nothing could be measured: {row.variant}: {row.reason}")
    return measured


@dataclass(eq=False)
class _BenchmarkRun:
    """A run of a benchmark, with the variants that could be made; see `bench`."""

    result: TransformResult
    model: nn.Module
    inputs: ExampleInputs
    settings: Settings

    def __post_init__(self) -> None:
        self.device = usable_device(self.settings.device)
        self.batch = self.settings.batch or _batch_of(self.inputs)
        self.variants: dict[str, Variant] = {}
        self.unmade: dict[str, str] = {}
        # What does not fit should not cost the making of the variants.
        self._at(self.settings.batch)
        stage("make the variants")
        made = variants_of(self.result, self.model)
        self.names = tuple(made)
        for name, make in made.items():
            try:
                self.variants[name] = make()
            except (ReplFxError, ForeignError) as problem:
                self.unmade[name] = _reason(problem)

    def training(self) -> tuple[TrainingRow, ...]:
        """Sizes of one variant after another, each alone on the device; then times in turns."""
        inputs = self._at(self.batch).map(lambda tensor: tensor.to(self.device))
        rows: dict[str, TrainingRow] = {}
        trainers: dict[str, Trainer] = {}
        for name in (name for name in self.names if name != UNFOLDED):
            rows[name] = row = TrainingRow(name, self.batch, reason=self.unmade.get(name))
            if name in self.unmade:
                continue
            stage(f"train {name}")
            row.form = self.variants[name].form
            trainer = self._attempt(row, partial(self._trainer, self.variants[name], inputs))
            if trainer is not None:
                trainers[name], row.sizes = trainer, trainer.sizes
        stage("time steps of training")
        steps = timed_steps(
            trainers,
            Timer(self.device),
            self.settings.rounds,
            warm_up=self.settings.warm_up,
            attempt=lambda name, turn: self._attempt(rows[name], turn),
        )
        for times in steps:
            for name, seconds in times.items():
                rows[name].steps.append(seconds)
        return tuple(rows.values())

    def _trainer(self, variant: Variant, inputs: ExampleInputs) -> Trainer:
        clear_memory(self.device)
        trainer = Trainer(variant.module, mean_squares(inputs), self.device)
        trainer.module.train()
        trainer.load()
        for _ in range(max(1, self.settings.warm_up)):
            trainer.step()
        trainer.sizes = Sizes.of(trainer)
        trainer.unload()
        return trainer

    def inference(self) -> tuple[InferenceRow, ...]:
        """Latencies at each batch size."""
        sizes = self.settings.batch_sizes or ((1, self.batch) if self.batch else (None,))
        with TemporaryDirectory() as scratch:
            prepared: dict[str, Prepared] = {}
            for name, variant in self.variants.items():
                place = Path(scratch) / name
                place.mkdir()
                prepared[name] = Prepared(variant, self.result.inputs, self.device, place)
            return tuple(row for size in dict.fromkeys(sizes) for row in self._latencies(size, prepared))

    def _latencies(self, batch: int | None, prepared: dict[str, Prepared]) -> list[InferenceRow]:
        rows: dict[str, InferenceRow] = {}
        turns: dict[str, Callable[[], float]] = {}
        for runtime in self.settings.runtimes:
            for name in (name for name in self.names if name != CHECKPOINTED):
                if name == UNFOLDED and runtime != EAGER:
                    # A file is always folded; compiling takes longer than all else.
                    continue
                key = f"{runtime}: {name}"
                rows[key] = row = InferenceRow(name, batch, reason=self.unmade.get(name), runtime=runtime)
                if name in self.unmade:
                    continue
                row.form = self.variants[name].form if name in (ORIGINAL, UNFOLDED) else "folded graph"
                stage(f"prepare {key}" + (f", batch {batch}" if batch else ""))
                call = self._attempt(row, partial(self._call, prepared[name], runtime, batch))
                if call is not None:
                    turns[key] = partial(latency, call, self.device)
        stage("time inference" + (f", batch {batch}" if batch else ""))
        counts: Any = {"rounds": self.settings.rounds, "warm_up": self.settings.warm_up}
        for times in interleaved(turns, **counts, attempt=lambda key, turn: self._attempt(rows[key], turn)):
            for key, seconds in times.items():
                rows[key].seconds.append(seconds)
        if self.settings.compiled:
            # The compiler keeps only a few versions of one piece of code.
            torch.compiler.reset()
        return list(rows.values())

    def _call(self, prepared: Prepared, runtime: str, batch: int | None) -> Call:
        call = prepared.call(runtime, self._at(batch))
        # Compiles, or fails.
        call()
        return call

    def _at(self, batch: int | None) -> ExampleInputs:
        """The inputs in a batch size; None takes them as they are."""
        if batch is None or batch == _batch_of(self.inputs):
            return self.inputs
        if _batch_of(self.inputs) is None:
            raise BadInput(f"the first example input is no tensor with a batch, so that none has a batch of {batch}")
        flat = flatten_inputs(self.result.captured_parts.source, self.inputs)
        return at_batch(flat, batch, self.settings.seed).given

    def _attempt(self, row: VariantRow, work: Callable[[], _Made]) -> _Made | None:
        """The result of some work on a row; None where it fails, with the reason in the row."""
        try:
            # A model, a compiler and a runtime may raise anything; what repl-fx raises is the problem of that.
            with foreign_code():
                return work()
        except (ReplFxError, ForeignError) as problem:
            row.reason = _reason(problem)
        clear_memory(self.device)
        return None


def _batch_of(inputs: ExampleInputs) -> int | None:
    """The first size of the first argument; None where that is no tensor, such as a list of pictures."""
    first = next(iter((*inputs.args, *inputs.kwargs.values())), None)
    return first.shape[0] if isinstance(first, Tensor) and first.ndim else None


def _reason(problem: ReplFxError | ForeignError) -> str:
    """An error in one line; those of repl-fx without the name of their class."""
    cause = problem.problem if isinstance(problem, ForeignError) else problem
    line = " ".join(str(cause).split()) if isinstance(cause, ReplFxError) else one_line(cause)
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"

"""Measured costs as they are compared and stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from repl_fx.benchmarking.training import Seconds, Sizes
from repl_fx.display.columns import Table
from repl_fx.display.html import Displayed
from repl_fx.running.timing import Share, Spread, paired_ratio

KIND, SCHEMA = "repl-fx bench", 1
# Names of variants; see `repl_fx.benchmarking.model_variants`.
ORIGINAL, REWRITTEN, UNFOLDED = "original", "rewritten", "unfolded"
PRUNED, CHECKPOINTED = "depth-pruned", "checkpointed"


@dataclass
class VariantRow:
    """One variant in one setting.

    Attributes:
        variant: its name.
        batch: inputs of one repetition; None where it is not known.
        form: of the module: `source`, `in place`, `graph` or `folded graph`; None where it could not be made.
        reason: why it was not measured, or not to the end.
    """

    variant: str
    batch: int | None
    form: str | None = None
    reason: str | None = None

    @property
    def samples(self) -> list[float]:
        """Seconds of each repetition, one a round."""
        raise NotImplementedError

    @property
    def throughput(self) -> float | None:
        """Inputs a second, by the median."""
        spread = Spread.of(self.samples)
        return None if spread is None or self.batch is None else self.batch / spread.median

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        spread = Spread.of(self.samples)
        return {
            "variant": self.variant,
            "batch": self.batch,
            "form": self.form,
            "not_measured": self.reason,
            "seconds": None if spread is None else asdict(spread),
            "inputs_per_second": self.throughput,
        }


@dataclass
class TrainingRow(VariantRow):
    """The training of one variant.

    Attributes:
        sizes: its memory.
        steps: seconds of the parts of each timed step.
    """

    sizes: Sizes | None = None
    steps: list[Seconds] = field(default_factory=list)

    @property
    def samples(self) -> list[float]:
        """Of each step, the sum of its parts."""
        return [sum(step.values()) for step in self.steps]

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {**super().to_json(), **(asdict(self.sizes) if self.sizes else {}), "samples": self.steps}


@dataclass
class InferenceRow(VariantRow):
    """The inference of one variant by one runtime.

    Attributes:
        runtime: of `repl_fx.benchmarking.inference.RUNTIMES`.
        seconds: of each call.
    """

    runtime: str = ""
    seconds: list[float] = field(default_factory=list)

    @property
    def samples(self) -> list[float]:
        """Seconds of each call."""
        return self.seconds

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {"runtime": self.runtime, **super().to_json(), "samples": self.seconds}


@dataclass(frozen=True, repr=False)
class Benchmark(Displayed):
    """The measured costs of a model and of its variants.

    Attributes:
        machine: hardware and versions (`repl_fx.benchmarking.hardware.of_device`).
        settings: the settings of the run.
        training, inference: a row for each variant in each setting; empty where that was not asked for.
        notes: remarks, a line each.
    """

    machine: dict[str, Any]
    settings: dict[str, Any]
    training: tuple[TrainingRow, ...] = ()
    inference: tuple[InferenceRow, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> tuple[VariantRow, ...]:
        """The rows of training and of inference."""
        return (*self.training, *self.inference)

    @property
    def memory(self) -> str:
        """The measure of memory: `peak`, or `kept` (for the backward pass) where the device counts no peak."""
        return "peak" if any(row.sizes and row.sizes.peak_bytes is not None for row in self.training) else "kept"

    def time_ratio(self, row: VariantRow) -> float | None:
        """The time of a variant as a multiple of the original's in the same setting: the median over rounds."""
        original = self._original(row)
        return None if original is None else paired_ratio(row.samples, original.samples)

    def settled(self, row: VariantRow) -> bool:
        """Tell whether that can be judged: the spread is narrow, and the fastest rounds say the same."""
        original, ratio = self._original(row), self.time_ratio(row)
        share = None if original is None else Share.of(row.samples, original.samples)
        return ratio is None or share is None or not (share.wide or abs(ratio - share.value) > 0.1 * ratio)

    def _original(self, row: VariantRow) -> VariantRow | None:
        """The original's row among those that took turns with one, and differ from it in the variant alone."""
        alike: Sequence[VariantRow] = self.training
        if isinstance(row, InferenceRow):
            alike = [one for one in self.inference if (one.runtime, one.batch) == (row.runtime, row.batch)]
        return next((one for one in alike if one.variant == ORIGINAL), None)

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "kind": KIND,
            "schema": SCHEMA,
            "machine": self.machine,
            "settings": self.settings,
            "memory": self.memory,
            "training": [self._with_ratio(row) for row in self.training],
            "inference": [self._with_ratio(row) for row in self.inference],
            "notes": list(self.notes),
        }

    def displayed(self) -> list[str | Table]:
        """The tables of training and inference, and the notes."""
        from repl_fx.benchmarking.bench_tables import bench_parts

        return bench_parts(self.to_json())

    def _with_ratio(self, row: VariantRow) -> dict[str, Any]:
        return {**row.to_json(), "of_original": self.time_ratio(row), "settled": self.settled(row)}

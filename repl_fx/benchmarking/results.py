"""Measured costs as they are compared and stored, and their tables and lines, from what was stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from repl_fx.benchmarking.hardware import in_a_line
from repl_fx.benchmarking.training import Seconds, Sizes
from repl_fx.display.columns import Table, numbers, words
from repl_fx.display.html import Displayed
from repl_fx.display.numbers import count, milliseconds, size
from repl_fx.running.timing import Share, Spread, paired_ratio

KIND, SCHEMA = "repl-fx bench", 1
# Names of variants; see `repl_fx.benchmarking.model_variants`.
ORIGINAL, REWRITTEN, UNFOLDED = "original", "rewritten", "unfolded"
PRUNED, CHECKPOINTED = "depth-pruned", "checkpointed"
# Columns of measured times.
_TIMES = numbers("ms", "min-max", "of the\noriginal", "inputs/s")
_Measured = Mapping[str, Any]


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
        runtime: one of those of `repl_fx.benchmarking.inference`.
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
        """The machine, the tables of training and inference, and what is to be said of them."""
        bench = self.to_json()
        about, lines = bench["machine"], (*bench["notes"], *unmeasured_lines(bench), *unsettled_lines(bench))
        return [*([in_a_line(dict(about))] if about else []), *bench_tables(bench), *lines]

    def _with_ratio(self, row: VariantRow) -> dict[str, Any]:
        return {**row.to_json(), "of_original": self.time_ratio(row), "settled": self.settled(row)}


def bench_tables(bench: _Measured) -> list[Table]:
    """A table of training and one of inference, each if it was measured.

    Args:
        bench: as `Benchmark.to_json` has it.
    """
    training, inference, tables = bench["training"], bench["inference"], []
    if training:
        memory = numbers({"peak": "peak\nmemory", "kept": "kept for\nbackward"}[bench["memory"]], "parameters")
        held = ((size(row.get(f"{bench['memory']}_bytes")), count(row.get("parameters"))) for row in training)
        rows = [(row["variant"], *_times(row), *known) for row, known in zip(training, held, strict=True)]
        tables.append(Table(f"Training{at_batch(training[0])}", (*words("variant"), *_TIMES, *memory), rows))
    if inference:
        at = ("-" if row["batch"] is None else str(row["batch"]) for row in inference)
        rows = [(batch, row["runtime"], row["variant"], *_times(row)) for batch, row in zip(at, inference, strict=True)]
        tables.append(Table("Inference", (*numbers("batch"), *words("runtime", "variant"), *_TIMES), rows))
    return tables


def unmeasured_lines(bench: _Measured) -> list[str]:
    """A line for each variant in each setting that was not measured, or not to the end, with the reason."""
    lines = []
    for row in (*bench["training"], *bench["inference"]):
        if row["not_measured"] is not None:
            how_far = f"measured in {len(row['samples'])} rounds only" if row["samples"] else "not measured"
            lines.append(f"{how_far}: {row['variant']}, {_setting(row)}: {row['not_measured']}")
    return lines


def unsettled_lines(bench: _Measured) -> list[str]:
    """The line that names times as parts of the original's whose spread is too wide to judge them; else none."""
    rows = (*bench["training"], *bench["inference"])
    # Files that older versions wrote do not say it.
    wide = [row for row in rows if row["variant"] != ORIGINAL and not row.get("settled", True)]
    named = "; ".join(f"{row['variant']}, {_setting(row)}" for row in wide)
    said = f"warning: too wide a spread to judge what is taken of the original: {named}; give more --rounds"
    return [said] if wide else []


def _times(row: _Measured) -> tuple[str, ...]:
    spread, ratio = row["seconds"], row["of_original"]
    if spread is None:
        return ("-",) * len(_TIMES)
    ends = f"{milliseconds(spread['least'])}-{milliseconds(spread['most'])}"
    share = "-" if ratio is None else f"{ratio:.2f}"
    return milliseconds(spread["median"]), ends, share, _rate(row["inputs_per_second"])


def _rate(number: float | None) -> str:
    """A number a second with three digits."""
    if number is None:
        return "-"
    return f"{number:#.3g}" if number < 99.95 else count(round(number))


def _setting(row: _Measured) -> str:
    return f"{row['runtime']}{at_batch(row)}" if "runtime" in row else "training"


def at_batch(row: Mapping[str, Any]) -> str:
    """The batch of a row of a benchmark, behind other words."""
    return "" if row["batch"] is None else f", batch {row['batch']}"

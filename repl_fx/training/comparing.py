"""Several runs side by side: variants of a model, seeds, and the table of what came out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.table import Table


@dataclass(frozen=True)
class Member:
    """One of the runs of a comparison.

    Attributes:
        variant: original, depth-pruned or rewritten.
        seed: of the run.
        folder: of its state, below that of the artifact; "" for the run whose weights the artifact has.
    """

    variant: str
    seed: int
    folder: str

    def __str__(self) -> str:
        return f"{self.variant}, seed {self.seed}"


@dataclass(frozen=True)
class VariantOutcome:
    """The outcome of a variant.

    Attributes:
        variant: original, depth-pruned or rewritten.
        parameters: of the model that was trained.
        figures: of the last evaluation, by name: a value for each seed.
        inputs_per_second: in training, by seed; empty for runs that were interrupted.
        memory_mib: most memory of the device in training, by seed; empty on a CPU.
        reason: why the variant was not trained; empty where it was.
    """

    variant: str
    parameters: int = 0
    figures: dict[str, list[float]] = field(default_factory=dict)
    inputs_per_second: list[float] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)
    reason: str = ""


def members(variants: Sequence[str], main: str, seed: int, seeds: int) -> tuple[Member, ...]:
    """The runs in turn: for each seed all variants.

    Args:
        main: the variant whose weights go into the artifact, those of the first seed.
    """
    return tuple(
        Member(variant, number, "" if (variant, number) == (main, seed) else f"others/{variant}-seed-{number}")
        for number in range(seed, seed + seeds)
        for variant in variants
    )


def write_comparison(rows: Sequence[VariantOutcome], file: Path) -> None:
    """Write the rows as JSON."""
    file.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


def comparison_table(rows: Sequence[VariantOutcome]) -> Table:
    """The rows as a table: means over seeds, with the standard deviation where there are several."""
    names = list(dict.fromkeys(name for row in rows for name in row.figures))
    table = Table()
    table.add_column("model")
    for title in ("parameters", *names, "inputs/s", *(["memory MiB"] if any(row.memory_mib for row in rows) else [])):
        table.add_column(title, justify="right")
    for row in rows:
        if row.reason:
            table.add_row(row.variant, f"not trained: {row.reason}")
            continue
        cells = [_spread(row.figures.get(name, []), 4) for name in names]
        cells.append(_spread(row.inputs_per_second, 0))
        if any(other.memory_mib for other in rows):
            cells.append(_spread(row.memory_mib, 0))
        table.add_row(row.variant, f"{row.parameters:,}", *cells)
    return table


def _spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return "–"
    shown = f"{mean(values):,.{digits}f}"
    return f"{shown} ± {stdev(values):.{digits}f}" if len(values) > 1 else shown


def rows_document(rows: Sequence[VariantOutcome]) -> list[dict[str, Any]]:
    """The rows as they go into a JSON document."""
    return [asdict(row) for row in rows]

"""Several runs side by side: variants of a model, seeds, and the table of what came out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import asdict

from repl_fx.reporting.model_graph.document import VariantOutcome as VariantOutcome
from repl_fx.reporting.tables import comparison_table as comparison_table


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
    file.write_text(json.dumps(rows_document(rows), indent=2) + "\n")


def rows_document(rows: Sequence[VariantOutcome]) -> list[dict[str, Any]]:
    """The rows as they go into a JSON document."""
    return [asdict(row) for row in rows]

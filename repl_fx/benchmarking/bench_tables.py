"""Tables and lines of measured costs, as `Benchmark.to_json` has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from repl_fx.benchmarking.hardware import in_a_line
from repl_fx.benchmarking.results import ORIGINAL
from repl_fx.display.columns import Table, numbers, words
from repl_fx.display.numbers import count, milliseconds, size

# Columns of measured times.
_TIMES = numbers("ms", "min-max", "of the\noriginal", "inputs/s")
_Measured = Mapping[str, Any]


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


def bench_parts(bench: _Measured) -> list[str | Table]:
    """The machine, the tables, and what is to be said of them."""
    about, lines = bench["machine"], (*bench["notes"], *unmeasured_lines(bench), *unsettled_lines(bench))
    return [*([in_a_line(dict(about))] if about else []), *bench_tables(bench), *lines]


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

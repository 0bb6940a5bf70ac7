"""The section of docs/zoo.md on other sizes: the dimensions of a model that are free, and what each form does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.zoo_runner.sizing import wrong

Row = Mapping[str, Any]

_HEAD = """## Other sizes

What {count} small models that take other sizes do at sizes that were not captured: `python -m benchmarks.zoo --sizes`
runs them, and its `--report-only` writes this section. Five sizes within the limits, smaller, larger, not square, of
batches of 1 to 7; at each limit the nearest size that breaks it, and one next to it that does not; and another size for
each dimension that is fixed. The captured graph and its ONNX file are compared with the source, within the limits the
graph in training mode, too: two steps with outputs, gradients and buffers; the model in place, the folded graph and its
ONNX file with the rewritten graph, by surrogate `auto`. *Refused* are sizes that the source takes
and the graph refuses, in one line. *Wrong* is an answer other than the source's, an answer where the source stops, and
none within the limits.

{facts}
"""
_TABLE = """| model | other sizes | within | at limits | refused | judged |
|---|---|--:|--:|---|---|"""


def sizes_section(records: Sequence[Row], facts: Row) -> Iterator[str]:
    """The section, line by line.

    Args:
        records: of the models that were run.
        facts: the versions, the processor and the commits of the run.
    """
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    yield _HEAD.format(count=len(records), facts=f"Versions: {versions}. {facts['processor']}. {facts['commits']}")
    yield from _summary(records)
    yield _TABLE
    for record in records:
        cells = (_name(record), _dimensions(record), *_trials(record), _judged(record))
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _summary(records: Sequence[Row]) -> Iterator[str]:
    dimensions = [dimension for record in records for dimension in record["dimensions"]]
    outcomes = Counter(_judged(record).partition(":")[0].strip("*") for record in records)
    refused = Counter(bool(_refusals(record)) for record in records)[True]
    yield f"- {', '.join(f'{count} {words}' for words, count in outcomes.most_common())}."
    yield f"- {sum(d['free'] for d in dimensions)} of {len(dimensions)} dimensions are free: {_by_name(dimensions)}."
    yield f"- {refused} models are refused at some size that the source takes, for the reasons in the table.\n"


def _by_name(dimensions: Sequence[Row]) -> str:
    every = Counter(_kind(dimension) for dimension in dimensions)
    free = Counter(_kind(dimension) for dimension in dimensions if dimension["free"])
    return ", ".join(f"{name} {free[name]} of {count}" for name, count in every.most_common())


def _kind(dimension: Row) -> str:
    return str(dimension["name"].rpartition("_")[2])


def _name(record: Row) -> str:
    return f"`{record['name'].removeprefix('sized:')}`"


def _dimensions(record: Row) -> str:
    """What each dimension takes; those that take the same together."""
    alike: dict[str, list[str]] = {}
    for dimension in record["dimensions"]:
        alike.setdefault(dimension["takes"], []).append(dimension["name"])
    return "; ".join(f"{', '.join(names)} {takes}" for takes, names in alike.items())


def _trials(record: Row) -> tuple[str, str, str]:
    """How many sizes within the limits, and at either side of one, are as they should be; and what is refused."""
    trials = record["trials"]
    within = [not wrong(trial) for trial in trials if trial["why"] == "within" and trial["source"] == "runs"]
    limits = [not wrong(trial) for trial in trials if trial["why"] in ("edge", "beyond")]
    return f"{sum(within)} of {len(within)}", f"{sum(limits)} of {len(limits)}" if limits else "", _refusals(record)


def _refusals(record: Row) -> str:
    """The limits and fixed dimensions at whose other sizes the source runs, and the graph does not."""
    return "; ".join(
        dict.fromkeys(
            trial["limit"].replace(" alone", "")
            for trial in record["trials"]
            if trial["source"] == "runs" and trial["forms"]["graph"].startswith("refused")
        )
    )


def _judged(record: Row) -> str:
    found = [problem for trial in record["trials"] for problem in wrong(trial)]
    if found:
        return f"**wrong**: {found[0]}" + (f", and {len(found) - 1} more" if len(found) > 1 else "")
    if record["failed"]:
        return f"**failed**: {record['failed']}, {record['reason']}"
    if record["nothing_repeats"]:
        return "right, nothing repeats"
    return "right, in graphs alone" if record["not_in_place"] else "right"

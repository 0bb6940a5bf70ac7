"""Costs of training as they are stored, compared and shown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.training.variants import CHECKPOINTED, FULL, pruned, rewritten
from repl_fx.benchmarking.hardware import in_a_line
from repl_fx.benchmarking.training import PARTS, Sizes
from repl_fx.environment.files import write_whole
from repl_fx.running.timing import paired_ratio

TARGET_MODELS, TARGET_DTYPE, TARGET_EVERY, TO_FLOOR = ("vit_base", "resnet50"), "bfloat16", 2, 1.05


@dataclass
class Row:
    """What one variant costs.

    Attributes:
        variant: its name.
        floor: name of the variant without the blocks that this one replaces; None where it replaces none.
        error: why it was not measured, or not to the end.
        parameters: how many.
        optimizer_bytes: size of the optimizer's state.
        kept_bytes: size of what the forward pass keeps for the backward pass.
        peak_bytes: most that tensors took on the device in a step; None where it cannot be told.
        before_bytes: what they took there before this variant came.
        steps: seconds of the parts of each timed step, one step a round; in evaluation, of the forward pass.
    """

    variant: str
    floor: str | None = None
    error: str | None = None
    parameters: int | None = None
    optimizer_bytes: int | None = None
    kept_bytes: int | None = None
    peak_bytes: int | None = None
    before_bytes: int | None = None
    steps: list[dict[str, float]] = field(default_factory=list)

    def take(self, sizes: Sizes) -> None:
        """Fill in the sizes."""
        for name, size in asdict(sizes).items():
            setattr(self, name, size)

    @property
    def sizes(self) -> Sizes | None:
        """The sizes, where they were measured."""
        if self.parameters is None or self.optimizer_bytes is None or self.kept_bytes is None:
            return None
        return Sizes(self.parameters, self.optimizer_bytes, self.kept_bytes, self.peak_bytes)

    def seconds(self) -> list[float]:
        """Of each step, the sum of its parts."""
        return [sum(step.values()) for step in self.steps]


@dataclass
class Group:
    """Variants that took turns in one run: one network, mode and dtype.

    Attributes:
        model, mode, dtype: what was run.
        batch: size of a batch.
        about: hardware, versions, settings and command of the run.
        rows: one for each variant.
    """

    model: str
    mode: str
    dtype: str
    batch: int
    about: dict[str, Any]
    rows: list[Row] = field(default_factory=list)

    def row(self, variant: str | None) -> Row | None:
        """The row of a variant, if it is here."""
        return next((row for row in self.rows if row.variant == variant), None)

    @property
    def memory(self) -> str:
        """What stands for memory in ratios: the peak, or what is kept for backward where no peak is known."""
        return "peak" if any(row.peak_bytes is not None for row in self.rows) else "kept"

    def time_ratio(self, ours: str, theirs: str | None) -> float | None:
        """The median over rounds of the time of one variant as a multiple of another's."""
        a, b = self.row(ours), self.row(theirs)
        return paired_ratio(a.seconds(), b.seconds()) if a and b else None

    def memory_ratio(self, ours: str, theirs: str | None, kind: str) -> float | None:
        """The memory of one variant, `peak` or `kept`, as a multiple of another's."""
        a, b = (getattr(row, f"{kind}_bytes", None) for row in (self.row(ours), self.row(theirs)))
        return a / b if a is not None and b else None


@dataclass(frozen=True)
class Target:
    """A claim about one variant in one group; `value` is None where it was not measured."""

    text: str
    value: float | None
    limit: float
    reach: bool

    @property
    def status(self) -> str:
        """`PASS`, `MISSED` or `not measured`."""
        if self.value is None:
            return "not measured"
        return "PASS" if self.value < self.limit or (self.reach and self.value == self.limit) else "MISSED"

    def __str__(self) -> str:
        shown = "" if self.value is None else f": {self.value:.3f} times"
        return f"{self.status} {self.text}{shown}, target {'at most' if self.reach else 'under'} {self.limit:g}"


def targets(groups: Iterable[Group], recommended: Sequence[str]) -> list[Target]:
    """What is claimed of the recommended surrogates, and whether it holds, for each group that it is claimed of."""
    found = []
    for group in groups:
        if group.model not in TARGET_MODELS or group.dtype != TARGET_DTYPE:
            continue
        for key in recommended:
            ours = rewritten(key, TARGET_EVERY).name
            for theirs, limit in ((pruned(TARGET_EVERY).name, TO_FLOOR), (CHECKPOINTED.name, 1.0)):
                where = f"of {group.model}, {group.mode}, {group.dtype}: {ours}, against {theirs}"
                reach = limit > 1
                found.append(Target(f"step time {where}", group.time_ratio(ours, theirs), limit, reach))
                peak = group.memory_ratio(ours, theirs, "peak")
                found.append(Target(f"peak memory {where}", peak, limit, reach))
    return found


# --- files ----------------------------------------------------------------------------------------------------------


def write_json(path: Path, groups: Iterable[Group]) -> None:
    """Write all that was measured; the file is whole at every moment."""
    write_whole(path, json.dumps({"groups": [asdict(group) for group in groups]}, indent=1) + "\n")


def read_json(path: Path) -> list[Group]:
    """Read what `write_json` wrote."""
    groups = json.loads(path.read_text())["groups"]
    return [Group(**group | {"rows": [Row(**row) for row in group["rows"]]}) for group in groups]


def merge(groups: Iterable[Group]) -> list[Group]:
    """One group for each network, mode, dtype, batch and hardware: the one with the most timed steps, else the last.

    Rows of different runs are never put into one group, as they did not take turns.
    """
    best: dict[tuple[Any, ...], Group] = {}
    for group in groups:
        key = (group.model, group.mode, group.dtype, group.batch, group.about.get("device"))
        if key not in best or _timed(group) >= _timed(best[key]):
            best[key] = group
    return list(best.values())


def _timed(group: Group) -> int:
    return sum(len(row.steps) for row in group.rows)


# --- tables ---------------------------------------------------------------------------------------------------------


def head(group: Group) -> list[str]:
    """The columns of a group's table."""
    ratios = [f"{what}/{to}" for what in ("time", group.memory) for to in ("floor", "full")]
    sizes = ["peak MiB", "kept MiB", "params M", "state MiB"]
    return ["variant", "step ms", "min – max", *PARTS, *sizes, *ratios]


def cells(group: Group, row: Row) -> list[str]:
    """One line of a group's table."""
    seconds = row.seconds()
    milli = [1e3 * one for one in seconds]
    parts = [_number(median(step[part] for step in row.steps), 1e-3, 1) if _has(row, part) else "–" for part in PARTS]
    times = [f"{median(milli):.1f}", f"{min(milli):.1f} – {max(milli):.1f}"] if seconds else ["–", "–"]
    sizes = [_number(size, 2**20, 1) for size in (row.peak_bytes, row.kept_bytes)]
    sizes += [_number(row.parameters, 1e6, 2), _number(row.optimizer_bytes, 2**20, 1)]
    others = (row.floor, FULL.name)
    ratios = [_number(group.time_ratio(row.variant, other), 1, 3) for other in others]
    ratios += [_number(group.memory_ratio(row.variant, other, group.memory), 1, 3) for other in others]
    return [row.variant, *times, *parts, *sizes, *ratios]


def _has(row: Row, part: str) -> bool:
    # An evaluation is a forward pass alone.
    return bool(row.steps) and part in row.steps[0]


def _number(value: float | None, unit: float, digits: int) -> str:
    return "–" if value is None else f"{value / unit:,.{digits}f}"


def title(group: Group) -> str:
    """What a group's table is about."""
    rounds = max((len(row.steps) for row in group.rows), default=0)
    dtype = "bfloat16 autocast" if group.dtype == "bfloat16" else group.dtype
    return f"{group.model}, {group.mode}, {dtype}, batch {group.batch}, {rounds} rounds"


def describe(about: dict[str, Any]) -> str:
    """Hardware, versions and clock of a run, in a line."""
    return f"{in_a_line(about)}; times by {about['clock']}"


def show(console: Console, group: Group) -> None:
    """Print the table of a group."""
    table = Table(title=escape(title(group)), title_justify="left")
    for number, column in enumerate(head(group)):
        table.add_column(column, justify="right" if number else "left", no_wrap=number < 3)
    for row in group.rows:
        table.add_row(*(escape(cell) for cell in cells(group, row)))
    console.print(table)
    for row in group.rows:
        if row.error:
            console.print(f"{row.variant}: {row.error}", style="red", markup=False, highlight=False)


def document(groups: Sequence[Group], recommended: Sequence[str]) -> str:
    """All groups in Markdown."""
    text = [
        "# What a training step and an evaluation cost",
        "",
        "Written by `benchmarks/step_cost.py`; its docstring says what is measured, and how. Times are medians over",
        "rounds; `floor` is the depth-pruned model at the same `every`, `full` the model as it is.",
        "",
    ]
    claims = [f"- {target}" for target in targets(groups, recommended)]
    text += ["## Targets", "", *claims, ""] if claims else []
    for group in groups:
        text += [f"## {title(group)}", "", describe(group.about) + ".", "", f"`{group.about['command']}`", ""]
        columns = head(group)
        text += [_line(columns), _line(["---"] + ["--:"] * (len(columns) - 1))]
        text += [_line(cells(group, row)) for row in group.rows]
        text += ["", *(f"- {row.variant}: {row.error}" for row in group.rows if row.error)]
        text += [""] if text[-1] else []
    return "\n".join(text)


def _line(parts: Sequence[str]) -> str:
    return f"| {' | '.join(part.replace('|', chr(92) + '|') for part in parts)} |"

"""Figures as plain data, which the terminal and the page of a report draw."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar

from repl_fx.benchmarking.results import REWRITTEN, at_batch
from repl_fx.display.numbers import milliseconds, size, small
from repl_fx.planning.scoring.scores import Kind, Scores
from repl_fx.reporting.model_graph.document import Curve, Layer

_LOSS = "rise of the loss without the block"


@dataclass(frozen=True)
class Bar:
    """A bar, and over it, where there are two, a thinner one for what is left.

    Attributes:
        marked: whether it is of a block that was replaced, or of the rewritten model.
    """

    name: str
    before: float
    after: float | None = None
    text: str = ""
    marked: bool = False


@dataclass(frozen=True)
class Bars:
    """Bars one below another; of pairs, the thin one is after.

    Attributes:
        bars: at least one; names may repeat.
        axis: title of the axis.
        note: a line on how to read them.
        unit: of the texts, where those leave it out.
    """

    title: str
    bars: Sequence[Bar]
    axis: str
    note: str = ""
    unit: str = ""

    @property
    def summary(self) -> str:
        """All of it in words."""
        return f"{self.title}: {', '.join(f'{bar.name} {self.text(bar)}' for bar in self.bars)}"

    def text(self, bar: Bar) -> str:
        """The text of a bar, with its unit."""
        return f"{bar.text} {self.unit}" if self.unit else bar.text


@dataclass(frozen=True)
class Curves:
    """Curves of one figure over the steps of runs."""

    note: ClassVar[str] = ""
    title: str
    curves: Sequence[Curve]

    @property
    def summary(self) -> str:
        """All of it in words."""
        ends = (f"{one.label} from {one.points[0][1]:.4g} to {one.points[-1][1]:.4g}" for one in self.curves)
        return f"{self.title} over the steps of training: {', '.join(ends)}"


@dataclass(frozen=True)
class Errors:
    """Errors of inner values, in the order of execution."""

    axis: ClassVar[str] = "max |difference| / scale"
    note: ClassVar[str] = "on a logarithmic scale; 0 stands at its lower end"
    title: str
    layers: Sequence[Layer]

    @property
    def summary(self) -> str:
        """All of it in words."""
        worst, place = max((layer.error, -place) for place, layer in enumerate(self.layers))
        return (
            f"{self.title}: {len(self.layers)} layers in the order of execution; "
            f"the largest error is {small(worst)}, at layer {-place}"
        )


Figure = Bars | Curves | Errors


def bench_figures(bench: Mapping[str, Any]) -> list[Bars]:
    """The medians of a step of training, its memory, and latencies of each runtime and batch; as far as measured.

    Args:
        bench: as `Benchmark.to_json` has it.
    """
    training, memory = bench["training"], bench["memory"]
    figures = list(_times("Step of training", training, at_batch(training[0]) if training else ""))
    held = [(row["variant"], row[f"{memory}_bytes"]) for row in training if row.get(f"{memory}_bytes") is not None]
    if held:
        bars = [Bar(name, number, None, size(number), name == REWRITTEN) for name, number in held]
        figures.append(
            Bars({"peak": "Peak memory of a step", "kept": "Kept for the backward pass"}[memory], bars, "bytes")
        )
    for (runtime, _), of_setting in groupby(bench["inference"], key=lambda row: (row["runtime"], row["batch"])):
        rows = list(of_setting)
        figures += _times(f"Inference, {runtime}{at_batch(rows[0])}", rows)
    return figures


def _times(title: str, rows: Iterable[Mapping[str, Any]], at: str = "") -> Iterator[Bars]:
    medians = [(row["variant"], row["seconds"]["median"]) for row in rows if row["seconds"]]
    if medians:
        bars = [Bar(name, 1e3 * one, None, milliseconds(one), name == REWRITTEN) for name, one in medians]
        yield Bars(title, bars, "ms", f"median{at}", "ms")


def scores_figures(scores: Scores, kind: Kind) -> list[Bars]:
    """A bar for each block, in a figure for each repeat; of no length for a loss that falls without the block."""
    by_block, figures = scores.of(kind), []
    for repeat, blocks in groupby(scores.blocks, key=lambda score: score.repeat):
        names = [score.block for score in blocks if score.block in by_block]
        if names:
            bars = [Bar(name, max(by_block[name], 0.0), None, f"{by_block[name]:.4g}") for name in names]
            figures.append(Bars(f"{repeat}: {_LOSS if kind == 'loss' else kind}", bars, kind))
    return figures

"""The sections of a report beside the picture: figures and tables of blocks, plan, scores, training, checks, times."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from repl_fx.benchmarking.hardware import in_a_line
from repl_fx.benchmarking.results import bench_tables, unmeasured_lines, unsettled_lines
from repl_fx.display.columns import Column, Table, numbers, words
from repl_fx.display.comparisons import figures_table
from repl_fx.display.numbers import change, count, size, small
from repl_fx.planning.scoring.scores import Scores
from repl_fx.reporting.figures import Bar, Bars, Curves, Errors, Figure, bench_figures
from repl_fx.reporting.model_graph.document import COSTS, BlockRow, Document
from repl_fx.reporting.tables import comparison_table, scores_table

# More bars than this are a wall; the table below has them all.
_MOST_BARS = 120
# Points of a curve that a picture of some hundred pixels can show.
_MOST_POINTS = 300


@dataclass(frozen=True)
class Section:
    """A section of the page, under a key that the navigation leads to."""

    key: str
    name: str
    lines: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()


def sections_of(document: Document) -> list[Section]:
    """The sections for which the document has something, in the order of the page."""
    makers = (_blocks, _repeats, _plan, _scores, _training, _verify, _bench)
    return [section for make in makers if (section := make(document)) is not None]


def _blocks(document: Document) -> Section | None:
    if next(_costs_of_blocks(document, "parameters"), None) is None:
        return None
    figures = []
    note = "wide and pale: before; thin: after, of replaced blocks in orange" if document.totals.after else ""
    for cost, title, text in COSTS:
        bars = []
        for name, marked, before, after in _costs_of_blocks(document, cost):
            if before is not None:
                shown = text(before) if after in (None, before) else f"{text(before)} → {text(after)}"
                bars.append(Bar(name, before, after, shown, marked))
        if any(bar.before for bar in bars):
            figures.append(_bars(f"{title[0].upper()}{title[1:]} of each block", bars, title, note))
    return Section("blocks", "Cost per block", figures=figures)


def _costs_of_blocks(document: Document, cost: str) -> Iterator[tuple[str, bool, int | None, int | None]]:
    """The name of each block, whether it is replaced, and a cost before and, of a transformed model, after."""
    if document.plan is not None:
        for row in document.plan.blocks:
            after = getattr(row, f"{cost}_after") or 0
            yield row.block, row.status == "replaced", getattr(row, f"{cost}_before"), after
        return
    for graph in document.views.before.graphs:
        for place, group in enumerate(graph.groups):
            # The cost of a block around it has its own in it.
            if group.kind == "block" and all(graph.groups[up].kind != "block" for up in graph.above(place)):
                yield group.name, False, getattr(group, cost), None


def _repeats(document: Document) -> Section | None:
    if not document.repeats:
        return Section("repeats", "Repeats", ("nothing repeats in this model",))
    columns = (
        *words("repeat"),
        *numbers("copies"),
        *words("kind"),
        *numbers("nodes a block", "parameters in all"),
        *words("blocks"),
    )
    rows = [
        (
            repeat.name,
            str(len(repeat.blocks)),
            repeat.kind,
            str(repeat.nodes_per_block),
            count(repeat.parameters),
            f"{repeat.blocks[0]} … {repeat.blocks[-1]}",
        )
        for repeat in document.repeats
    ]
    return Section("repeats", "Repeats", tables=(Table("Repeats", columns, rows),))


def _plan(document: Document) -> Section | None:
    plan = document.plan
    if plan is None:
        return None
    gone = [row for row in plan.blocks if row.status == "replaced"]
    lines = [f"{len(gone)} of {len(plan.blocks)} blocks are replaced"]
    if plan.options:
        lines.append(", ".join(f"{name}: {_plain(value)}" for name, value in plan.options.items()))
    scored = any(row.score is not None for row in plan.blocks)
    columns = (
        *numbers("#"),
        Column("block", "block"),
        Column("status", "status"),
        *words("stands in"),
        *numbers(*(["score"] if scored else []), "parameters", "FLOPs", "kept"),
        *words("how, or why not"),
    )
    rows = [
        (
            str(row.number),
            row.block,
            row.status,
            row.surrogate or "",
            *(["" if row.score is None else f"{row.score:.4g}"] if scored else []),
            _pair(row.parameters_before, row.parameters_after, count),
            _pair(row.flops_before, row.flops_after, count),
            _pair(row.kept_before, row.kept_after, size),
            _how(row),
        )
        for row in plan.blocks
    ]
    return Section("plan", "Plan", lines, tables=(Table("Plan", columns, rows),))


def _how(row: BlockRow) -> str:
    """The layers of a block that is part of a module, what its surrogate is made from and how, and the reason."""
    part = f"{', '.join(row.layers)} alone" if row.layers else ""
    made = f"made from {' and '.join(row.neighbours)}" if row.neighbours else ""
    return "; ".join(filter(None, (part, made, row.left, _plain(row.settings or {}), row.reason)))


def _scores(document: Document) -> Section | None:
    if document.scores is None:
        return None
    scores = Scores.from_json(json.dumps(dict(document.scores)))
    titles = {"loss": "Rise of the loss without the block"}
    gone = {row.block for row in document.plan.blocks if row.status == "replaced"} if document.plan else set()
    figures = []
    for kind in scores.kinds:
        found = scores.of(kind)
        if found:
            bars = [Bar(name, max(value, 0.0), None, f"{value:.3g}", name in gone) for name, value in found.items()]
            note = "orange: blocks that are replaced" if gone & found.keys() else ""
            figures.append(_bars(titles.get(kind, kind.capitalize()), bars, kind, note))
    return Section("scores", "Scores", (str(scores),), figures, (replace(scores_table(scores), folded=True),))


def _training(document: Document) -> Section | None:
    training = document.training
    if training is None:
        return None
    curves = sorted((curve for curve in training.curves if len(curve.points) > 1), key=lambda curve: curve.name)
    figures = [
        Curves(name, [curve.thinned(_MOST_POINTS) for curve in of_name])
        for name, of_name in groupby(curves, key=lambda curve: curve.name)
    ]
    tables = [figures_table(training.figures, "The last evaluation", ".4g")] if training.figures else []
    if training.comparison:
        tables.append(comparison_table(training.comparison))
    return Section("training", "Training", figures=figures, tables=tables)


def _verify(document: Document) -> Section | None:
    if not document.verify:
        return None
    lines, figures, tables = [], [], []
    difference = (*numbers("max abs", "scale"), *words("verdict"))
    for check in document.verify:
        at = f"{check.part}: " if check.part else ""
        lines += [f"{at}{line}" for line in (check.summary, *check.failures)]
        if len(check.layers) > 1:
            figures.append(Errors(f"{at}Error of each layer, ONNX Runtime against PyTorch", check.layers))
        outputs = [
            (
                str(row["output"]),
                str(row["batch"]),
                # Files that older versions wrote do not say it.
                str(row.get("sizes", "")),
                *_verdict(row["max_abs"], row["scale"], passed=row["passed"]),
            )
            for row in check.outputs
        ]
        layers = [
            (str(place), one.module or one.node, *_verdict(one.max_abs, one.scale, passed=one.passed))
            for place, one in enumerate(check.layers)
        ]
        inputs = (*words("output"), *numbers("batch"), *words("other sizes"))
        tables.append(Table(f"{at}Outputs", (*inputs, *difference), outputs))
        if layers:
            columns = (*numbers("#"), *words("layer"), *difference)
            tables.append(Table(f"{at}Layers", columns, layers, folded=True))
    return Section("verify", "Verification", lines, figures, tables)


def _verdict(most: float | str, scale: float | str, *, passed: bool) -> tuple[str, str, str]:
    return small(float(most)), f"{float(scale):.4g}", "passes" if passed else "differs"


def _bench(document: Document) -> Section | None:
    bench = document.bench
    if bench is None:
        return None
    lines = [in_a_line(dict(bench["machine"])), *bench["notes"], *unmeasured_lines(bench), *unsettled_lines(bench)]
    # Times first.
    figures = sorted(bench_figures(bench), key=lambda figure: not figure.unit)
    return Section("bench", "Benchmark", lines, figures, [replace(table, folded=True) for table in bench_tables(bench)])


def _bars(title: str, bars: Sequence[Bar], axis: str, note: str = "") -> Bars:
    left_out = [f"the first {_MOST_BARS} of {len(bars)}"] if len(bars) > _MOST_BARS else []
    return Bars(title, bars[:_MOST_BARS], axis, "; ".join(filter(None, [note, *left_out])))


def _pair(before: int | None, after: int | None, text: Callable[[int | None], str]) -> str:
    """A cost before and after with its change, or once where it is the same."""
    if before == after or after is None:
        return text(before)
    return f"{text(before)} → {text(after)} ({change(before, after)})"


def _plain(value: object) -> str:
    """A setting in words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(one)}" for name, one in value.items())
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ", ".join(_plain(one) for one in value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)

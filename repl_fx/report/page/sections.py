"""The sections of a report beside the picture: charts and tables of blocks, plan, scores, training, checks, times."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

from markupsafe import Markup

from repl_fx.benchmarking.machine import in_a_line
from repl_fx.display.numbers import change, count, milliseconds, size, small
from repl_fx.report.model_graph.document import BlockRow, Compared, Document, Group, Layer
from repl_fx.report.page.charts import Bar, Curve, LayerError, bars_chart, curves_chart, errors_chart
from repl_fx.scoring.scores import Scores

# More bars than this are a wall; the table below has them all.
_MOST_BARS = 120
# Points of a curve that a picture of some hundred pixels can show.
_MOST_POINTS = 300
# The end of a name says which block it is.
_LONGEST_NAME = 28


@dataclass(frozen=True)
class Column:
    """A column of a table: plain words, numbers, names of blocks that lead to the picture, or the fate of a block."""

    name: str
    kind: Literal["words", "number", "block", "status"] = "words"

    @property
    def number(self) -> bool:
        """Whether its cells stand at the right."""
        return self.kind == "number"


@dataclass(frozen=True)
class Table:
    """A table; one that is folded shows its title alone until it is opened."""

    title: str
    columns: tuple[Column, ...]
    rows: Sequence[Sequence[str]]
    folded: bool = False


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        note: a line on how to read it.
        summary: what it shows in words, for those who cannot see it.
        svg: it as an SVG element.
    """

    title: str
    summary: str
    svg: Markup
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A section of the page, under a key that the navigation leads to."""

    key: str
    name: str
    lines: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = field(default=())


def sections_of(document: Document) -> list[Section]:
    """The sections for which the document has something, in the order of the page."""
    makers = (_blocks, _repeats, _plan, _scores, _training, _verify, _bench)
    return [section for make in makers if (section := make(document)) is not None]


@dataclass(frozen=True)
class _Costs:
    """Costs of a block before and, where the model was transformed, after."""

    name: str
    marked: bool
    before: tuple[int | None, int | None, int | None]
    after: tuple[int | None, int | None, int | None] | None


_COSTS: tuple[tuple[str, str, Callable[[int | None], str]], ...] = (
    ("Parameters of each block", "parameters", count),
    ("FLOPs of each block, forward", "FLOPs", count),
    ("Bytes kept for backward by each block", "bytes", size),
)


def _blocks(document: Document) -> Section | None:
    rows = list(_costs_of_blocks(document))
    if not rows:
        return None
    charts = []
    for place, (title, unit, words) in enumerate(_COSTS):
        known = [(row, number) for row in rows if (number := row.before[place]) is not None]
        if not any(number for _, number in known):
            continue
        bars = []
        for row, before in known:
            after = None if row.after is None else row.after[place] or 0
            shown = words(before) if after in (None, before) else f"{words(before)} → {words(after)}"
            bars.append(Bar(row.name, before, after, shown, row.marked))
        note = "wide and pale: before; thin: after, of replaced blocks in orange" if document.totals.after else ""
        charts.append(_bars(title, bars, unit, note))
    return Section("blocks", "Cost per block", charts=charts)


def _costs_of_blocks(document: Document) -> Iterator[_Costs]:
    if document.plan is not None:
        for row in document.plan.blocks:
            before = (row.parameters_before, row.flops_before, row.kept_before)
            yield _Costs(
                row.block, row.status == "replaced", before, (row.parameters_after, row.flops_after, row.kept_after)
            )
        return
    for graph in document.views.before.graphs:
        for group in graph.groups:
            if group.kind == "block" and not _is_inside_a_block(graph.groups, group):
                yield _Costs(group.name, False, (group.parameters, group.flops, group.kept), None)


def _is_inside_a_block(groups: Sequence[Group], group: Group) -> bool:
    """Whether a block lies in one of another repeat, whose cost has its own in it."""
    place = group.parent
    while place is not None:
        if groups[place].kind == "block":
            return True
        place = groups[place].parent
    return False


def _repeats(document: Document) -> Section | None:
    if not document.repeats:
        return Section("repeats", "Repeats", ("nothing repeats in this model",))
    columns = (
        Column("repeat"),
        Column("copies", "number"),
        Column("kind"),
        Column("nodes a block", "number"),
        Column("parameters in all", "number"),
        Column("blocks"),
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
    costs = ("parameters", "FLOPs", "kept")
    scored = any(row.score is not None for row in plan.blocks)
    columns = (
        Column("#", "number"),
        Column("block", "block"),
        Column("status", "status"),
        Column("stands in"),
        *([Column("score", "number")] if scored else []),
        *(Column(name, "number") for name in costs),
        Column("how, or why not"),
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
    """The blocks that a surrogate is made from and its settings, and the reason; each where there is one."""
    words = [f"made from {' and '.join(row.neighbours)}"] if row.neighbours else []
    words += [row.left, ", ".join(f"{name} {_plain(value)}" for name, value in (row.settings or {}).items())]
    return "; ".join(filter(None, [*words, row.reason]))


def _scores(document: Document) -> Section | None:
    if document.scores is None:
        return None
    scores = Scores.from_json(json.dumps(dict(document.scores)))
    titles = {"loss": "Rise of the loss without the block"}
    gone = {row.block for row in document.plan.blocks if row.status == "replaced"} if document.plan else set()
    charts = []
    for kind in scores.kinds:
        found = scores.of(kind)
        if found:
            bars = [Bar(name, max(value, 0.0), None, f"{value:.3g}", name in gone) for name, value in found.items()]
            note = "orange: blocks that are replaced" if gone & found.keys() else ""
            charts.append(_bars(titles.get(kind, kind.capitalize()), bars, kind, note))
    columns = (Column("block", "block"), *(Column(kind, "number") for kind in scores.kinds), Column("why not"))
    values = [scores.of(kind) for kind in scores.kinds]
    rows = [
        (
            score.block,
            *(f"{found[score.block]:.4g}" if score.block in found else "" for found in values),
            "; ".join(dict.fromkeys(score.reasons.values())),
        )
        for score in scores.blocks
    ]
    return Section("scores", "Scores", (str(scores),), charts, (Table("Scores", columns, rows, folded=True),))


def _training(document: Document) -> Section | None:
    training = document.training
    if training is None:
        return None
    charts = []
    curves = sorted((curve for curve in training.curves if len(curve.points) > 1), key=lambda curve: curve.name)
    for name, of_name in groupby(curves, key=lambda curve: curve.name):
        drawn = [Curve(curve.run or name, _thinned(curve.points)) for curve in of_name]
        ends = ", ".join(f"{one.name} from {one.points[0][1]:.4g} to {one.points[-1][1]:.4g}" for one in drawn)
        charts.append(Chart(name, f"{name} over the steps of training: {ends}", Markup(curves_chart(drawn, name))))
    figures = list(dict.fromkeys(name for row in training.figures.values() for name in row))
    columns = (Column("model"), *(Column(name, "number") for name in figures))
    rows = [
        (model, *(f"{row[name]:.4g}" if name in row else "" for name in figures))
        for model, row in training.figures.items()
    ]
    tables = [Table("The last evaluation", columns, rows)] if rows else []
    if training.comparison:
        tables.append(_comparison(training.comparison))
    return Section("training", "Training", charts=charts, tables=tables)


def _comparison(compared: Sequence[Compared]) -> Table:
    figures = list(dict.fromkeys(name for one in compared for name in one.figures))
    numbers = ("parameters", *figures, "inputs/s", "memory, MiB")
    columns = (Column("variant"), *(Column(name, "number") for name in numbers), Column("why not"))
    rows = [
        (
            one.variant,
            count(one.parameters) if one.parameters else "",
            *(_mean(one.figures.get(name, ())) for name in figures),
            _mean(one.inputs_per_second),
            _mean(one.memory_mib),
            one.reason,
        )
        for one in compared
    ]
    return Table("Variants, means over seeds", columns, rows)


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.4g}" if values else ""


def _verify(document: Document) -> Section | None:
    if not document.verify:
        return None
    lines, charts, tables = [], [], []
    for check in document.verify:
        at = f"{check.part}: " if check.part else ""
        lines += [f"{at}{line}" for line in (check.summary, *check.failures)]
        errors = [_layer_error(place, layer) for place, layer in enumerate(check.layers)]
        if len(errors) > 1:
            worst = max(errors, key=lambda one: one.error)
            title = f"{at}Error of each layer, ONNX Runtime against PyTorch"
            summary = (
                f"{title}: {len(errors)} layers in the order of execution; "
                f"the largest error is {small(worst.error)}, at layer {worst.place}"
            )
            svg = Markup(errors_chart(errors, "max |difference| / scale"))
            charts.append(Chart(title, summary, svg, "on a logarithmic scale; 0 stands at its lower end"))
        difference = (Column("max abs", "number"), Column("scale", "number"), Column("verdict"))
        outputs = [
            (str(row["output"]), str(row["batch"]), *_verdict(row["max_abs"], row["scale"], passed=row["passed"]))
            for row in check.outputs
        ]
        layers = [
            (str(place), one.module or one.node, *_verdict(one.max_abs, one.scale, passed=one.passed))
            for place, one in enumerate(check.layers)
        ]
        tables.append(Table(f"{at}Outputs", (Column("output"), Column("batch", "number"), *difference), outputs))
        if layers:
            columns = (Column("#", "number"), Column("layer"), *difference)
            tables.append(Table(f"{at}Layers", columns, layers, folded=True))
    return Section("verify", "Verification", lines, charts, tables)


def _layer_error(place: int, layer: Layer) -> LayerError:
    return LayerError(place, float(layer.max_abs) / (float(layer.scale) or 1.0), layer.passed)


def _verdict(most: float | str, scale: float | str, *, passed: bool) -> tuple[str, str, str]:
    return small(float(most)), f"{float(scale):.4g}", "passes" if passed else "differs"


def _bench(document: Document) -> Section | None:
    bench = document.bench
    if bench is None:
        return None
    charts, rows = [], []
    settings: list[tuple[str, list[Mapping[str, Any]]]] = []
    if bench["training"]:
        settings.append((f"Step of training{_at(bench['training'][0])}", list(bench["training"])))
    for (runtime, _), of_setting in groupby(bench["inference"], key=lambda row: (row["runtime"], row["batch"])):
        alike = list(of_setting)
        settings.append((f"Inference, {runtime}{_at(alike[0])}", alike))
    for title, measured in settings:
        timed = [row for row in measured if row["seconds"]]
        if timed:
            bars = [
                Bar(row["variant"], 1e3 * _median(row), None, f"{milliseconds(_median(row))} ms", _is_ours(row))
                for row in timed
            ]
            charts.append(_bars(title, bars, "ms", "median"))
        rows += [(title, *_times(row)) for row in measured]
    memory = f"{bench['memory']}_bytes"
    held = [row for row in bench["training"] if row.get(memory) is not None]
    if held:
        name = {"peak": "Peak memory of a step", "kept": "Kept for the backward pass"}[bench["memory"]]
        bars = [Bar(row["variant"], row[memory], None, size(row[memory]), _is_ours(row)) for row in held]
        charts.append(_bars(name, bars, "bytes"))
    columns = (
        Column("setting"),
        Column("variant"),
        *(Column(name, "number") for name in ("ms", "of the original", "inputs/s")),
        Column("why not"),
    )
    lines = [in_a_line(dict(bench["machine"])), *bench["notes"]]
    return Section("bench", "Benchmark", lines, charts, (Table("Times", columns, rows, folded=True),))


def _median(row: Mapping[str, Any]) -> float:
    return float(row["seconds"]["median"])


def _is_ours(row: Mapping[str, Any]) -> bool:
    return bool(row["variant"] == "rewritten")


def _at(row: Mapping[str, Any]) -> str:
    return "" if row["batch"] is None else f", batch {row['batch']}"


def _times(row: Mapping[str, Any]) -> tuple[str, ...]:
    ratio, rate = row["of_original"], row["inputs_per_second"]
    return (
        row["variant"],
        milliseconds(_median(row)) if row["seconds"] else "",
        "" if ratio is None else f"{ratio:.2f}",
        "" if rate is None else f"{rate:.3g}" if rate < 1000 else count(round(rate)),
        row["not_measured"] or "",
    )


def _bars(title: str, bars: Sequence[Bar], unit: str, note: str = "") -> Chart:
    shown = [Bar(_short(bar.name), bar.before, bar.after, bar.text, bar.marked) for bar in bars[:_MOST_BARS]]
    left_out = [f"the first {_MOST_BARS} of {len(bars)}"] if len(bars) > _MOST_BARS else []
    words = ", ".join(f"{bar.name} {bar.text}" for bar in bars[:_MOST_BARS])
    return Chart(
        title, f"{title}: {words}", Markup(bars_chart(shown, unit)), "; ".join(filter(None, [note, *left_out]))
    )


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"…{name[1 - _LONGEST_NAME :]}"


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points of a curve in even distances, with its first and its last."""
    stride = -(-len(points) // _MOST_POINTS)
    kept = list(points[::stride])
    return kept if (len(points) - 1) % stride == 0 else [*kept, points[-1]]


def _pair(before: int | None, after: int | None, words: Callable[[int | None], str]) -> str:
    """A cost before and after with its change, or once where it is the same."""
    if before == after or after is None:
        return words(before)
    return f"{words(before)} → {words(after)} ({change(before, after)})"


def _plain(value: object) -> str:
    """A setting in words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(one)}" for name, one in value.items())
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ", ".join(_plain(one) for one in value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)

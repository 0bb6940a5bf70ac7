"""Tables and lines of results: parts, scores, costs, checks.

On a terminal each table fits 80 columns: numbers keep their width, names and reasons are folded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from statistics import mean, stdev
from typing import TYPE_CHECKING

from repl_fx.costs.counted import Costs
from repl_fx.display.columns import Column, Table, numbers, words
from repl_fx.display.numbers import change, count, size, small
from repl_fx.graph.axes import dimensions_of
from repl_fx.graph.grouping import grouped
from repl_fx.graph.state import parameter_count

if TYPE_CHECKING:
    from repl_fx.export import Difference, Verification
    from repl_fx.planning.scoring.scores import Scores
    from repl_fx.reporting.model_graph.document import VariantOutcome
    from repl_fx.rewriting.in_place.assembling import InPlace
    from repl_fx.tracing.parts.capture_parts import CapturedParts


# Inputs that are named of those with a dimension in common: a cache has two for each layer.
_MOST_INPUTS = 3
_VERDICT = Column("verdict", "word")
_Text = Callable[[int | None], str]
_Value = Callable[[Costs], int | None]
_GROWING: tuple[tuple[str, _Text, _Value], ...] = (
    ("the number of parameters", count, lambda costs: costs.parameters),
    ("the size of the weights on disk", size, lambda costs: costs.weight_bytes),
    ("the FLOPs of a forward pass", count, lambda costs: costs.flops),
    ("the memory kept for backward, with that for synthesis,", size, lambda costs: costs.kept_bytes),
)


def parts_table(captured: CapturedParts) -> Table:
    """The modules of a model that are graphs, and those that were tried and stay eager, with the reason."""
    infos = ((part.path, part.graph_module.meta["capture"]) for part in captured.parts)
    found = [(path, info.model, info.tracer) for path, info in infos]
    found += [(eager.path, eager.kind, f"eager: {eager.reason}") for eager in captured.eager]
    rows = []
    for path, kind, tracer in found:
        parameters = parameter_count(captured.source.get_submodule(path))
        rows.append((path or "the model itself", kind, count(parameters), tracer))
    how = words("captured by, or why it stays eager")
    return Table("Parts", (*words("module", "class"), *numbers("parameters"), *how), rows)


def sizes_table(captured: CapturedParts) -> Table:
    """The sizes that the graphs take, and the lines of the model that limit or fix them."""
    rows = []
    for part in captured.parts:
        for one in dimensions_of(part.graph_module):
            more = len(one.inputs) - _MOST_INPUTS
            inputs = ", ".join(one.inputs[:_MOST_INPUTS]) + (f" and {more} more" if more > 0 else "")
            example = "-" if one.size is None else str(one.size)
            rows.append((part.path, one.name, inputs, example, one.takes))
    columns = (*words("module", "dimension", "of"), *numbers("example"), *words("takes"))
    first = 1 if captured.whole else 0
    return Table("Sizes of the inputs", columns[first:], [row[first:] for row in rows])


def scores_table(scores: Scores) -> Table:
    """The scores of each block, numbered as `--blocks` takes them, and why one has none."""
    values = [scores.of(kind) for kind in scores.kinds]
    kinds = ["rise of\nthe loss" if kind == "loss" else kind for kind in scores.kinds]
    greedy = ["goes as\nnumber"] if scores.greedy else []
    why = ["why not"] if any(score.reasons for score in scores.blocks) else []
    rows = []
    for number, score in enumerate(scores.blocks, start=1):
        cells = [f"{found[score.block]:.4g}" if score.block in found else "-" for found in values]
        if greedy:
            cells.append(str(score.greedy_rank or "-"))
        if why:
            cells.append("; ".join(dict.fromkeys(score.reasons.values())))
        rows.append((str(number), score.block, *cells))
    return Table("Scores", (*numbers("#"), Column("block", "block"), *numbers(*kinds, *greedy), *words(*why)), rows)


def costs_table(before: Costs, after: Costs | None = None) -> Table:
    """Costs of a model, or costs before and after a transform with the change in percent."""
    # An artifact has the rewritten parts alone, which cost less than all that were captured.
    calls = f"each of {before.parts} parts" if before.parts != 1 else "1 part"
    batch = f"batch {before.batch}" if before.parts is None else f"one call of {calls}"
    lines: list[tuple[str, _Text, _Value]] = [
        ("parameters", count, lambda costs: costs.parameters),
        ("weights on disk", size, lambda costs: costs.weight_bytes),
        (f"FLOPs, forward, {batch}", count, lambda costs: costs.flops),
        (f"activations kept for backward, {batch}", size, lambda costs: costs.activation_bytes),
    ]
    if before.synthesis_bytes or (after is not None and after.synthesis_bytes):
        lines.append(("kept for synthesis, at any batch", size, lambda costs: costs.synthesis_bytes))
    if after is None:
        return Table("Costs", (*words(""), *numbers("")), [(name, text(value(before))) for name, text, value in lines])
    rows = [
        (name, text(was), text(now), change(was, now))
        for name, text, value in lines
        for was, now in [(value(before), value(after))]
    ]
    return Table("Before and after", (*words(""), *numbers("before", "after", "change")), rows)


def comparison_table(rows: Sequence[VariantOutcome]) -> Table:
    """Variants of a model: means over seeds, with the standard deviation where there are several."""
    names = list(dict.fromkeys(name for row in rows for name in row.figures))
    memory = ["memory, MiB"] if any(row.memory_mib for row in rows) else []
    cells = []
    for row in rows:
        measured = [_spread(row.figures.get(name, ()), 4) for name in names]
        measured += [_spread(row.inputs_per_second, 0), *(_spread(row.memory_mib, 0) for _ in memory)]
        parameters = f"{row.parameters:,}" if row.parameters else "-"
        cells.append((row.variant, parameters, *measured, f"not trained: {row.reason}" if row.reason else ""))
    columns = (*words("variant"), *numbers("parameters", *names, "inputs/s", *memory), *words(""))
    return Table("Variants, means over seeds", columns, cells)


def _spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return "-"
    shown = f"{mean(values):,.{digits}f}"
    return f"{shown} ± {stdev(values):,.{digits}f}" if len(values) > 1 else shown


def verification_table(verification: Verification, part: str = "") -> Table:
    """A row for each output with the worst of all sizes, and the sizes at which it is not within the tolerance.

    Args:
        part: of a model in parts, the path of what was compared.
    """
    found = grouped((row.output, row) for row in verification.rows)
    failing = ["differs at"] if any(not row.passed for row in verification.rows) else []
    rows = [(output, *_worst(at), *[_differs_at(at)] * len(failing)) for output, at in found.items()]
    sizes = len({(row.batch, row.sizes) for row in verification.rows})
    title = f"ONNX Runtime and PyTorch{f', {part}' if part else ''}{f', the worst of {sizes} sizes' * (sizes > 1)}"
    measures = numbers("max\nabs", "mean\nabs", "median\nabs", "max\nrel", "cosine", "top-1")
    return Table(title, (*words("output"), *measures, _VERDICT, *words(*failing)), rows)


def _worst(at: Sequence[Difference]) -> list[str]:
    """The measures of an output at several sizes, the worst of each, and the verdict."""
    worst = (max(map(attrgetter(name), at)) for name in ("max_abs", "mean_abs", "median_abs", "max_rel"))
    agreements = [row.top1_agreement for row in at if row.top1_agreement is not None]
    agreement = f"{100 * min(agreements):.4g} %" if agreements else "-"
    verdict = _verdict(next((row for row in at if not row.passed), at[0]))
    return [*map(small, worst), f"{min(row.cosine for row in at):.6f}", agreement, verdict]


def _differs_at(at: Sequence[Difference]) -> str:
    """The sizes at which an output is not within the tolerance."""
    differs = [row for row in at if not row.passed]
    return "all sizes" if differs == at and differs[1:] else "; ".join(row.at for row in differs)


def layers_table(verification: Verification) -> Table:
    """A row for each inner value that was compared, in the order of execution."""
    rows = []
    for layer in verification.layers:
        row = layer.difference
        differences = (small(number) for number in (row.max_abs, row.mean_abs, row.max_rel))
        rows.append((layer.module or layer.node, *differences, f"{row.cosine:.6f}", _verdict(row)))
    return Table("Layers", (*words("layer"), *numbers("max\nabs", "mean\nabs", "max\nrel", "cosine"), _VERDICT), rows)


def _verdict(row: Difference) -> str:
    return "equal" if row.passed else "DIFFERS"


def placing_line(in_place: InPlace) -> str:
    """Tell whether each surrogate has a place in the source's own tree, or which has none, and why."""
    if not in_place.refusals:
        return "in place: each surrogate is called as its block was; repl_fx.load gives the class"
    more = f", and {len(in_place.refusals) - 1} more" if len(in_place.refusals) > 1 else ""
    return f"in graphs alone: {in_place.reason}{more}"


def forms_line(model: Costs, graph: Costs) -> str | None:
    """A line that says what the graph of a result keeps, where the model in place keeps another amount; else None."""
    kept, of_graph = model.kept_bytes, graph.kept_bytes
    if kept is None or of_graph is None or kept == of_graph:
        return None
    hint = "; train the model in place" if kept < of_graph else ""
    return f"its graph keeps {size(of_graph)} for the backward pass, and the model in place {size(kept)}{hint}"


def grown_lines(before: Costs, after: Costs) -> list[str]:
    """A line for each cost that is larger than before, which nobody asks a smaller model for."""
    lines = []
    for name, text, value in _GROWING:
        was, now = value(before), value(after)
        if was is not None and now is not None and now > was:
            lines.append(f"warning: {name} grew from {text(was)} to {text(now)} ({change(was, now)})")
    return lines

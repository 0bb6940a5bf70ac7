"""Tables for the terminal: parts, scores, costs, checks, measured times.

Each fits 80 columns: numbers keep their width, names and reasons are folded. Cells are never read as markup.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from rich.table import Table

from repl_fx.benchmarking.results import Benchmark, InferenceRow, Row
from repl_fx.benchmarking.variants import ORIGINAL
from repl_fx.costs.counted import Costs
from repl_fx.display.columns import add_numbers, add_row, add_words, new_table
from repl_fx.display.numbers import change, count, milliseconds, size, small
from repl_fx.graph.axes import dimensions_of
from repl_fx.in_place.assembling import InPlace
from repl_fx.running.timing import Spread
from repl_fx.scoring.scores import Scores
from repl_fx.tracing.parts.capture import CapturedParts

if TYPE_CHECKING:
    from repl_fx.export import Difference, Verification


# Inputs that are named of those with a dimension in common: a cache has two for each layer.
_MOST_INPUTS = 3
_Text = Callable[[int | None], str]
_Value = Callable[[Costs], int | None]
_GROWING: tuple[tuple[str, _Text, _Value], ...] = (
    ("the number of parameters", count, lambda costs: costs.parameters),
    ("the size of the weights on disk", size, lambda costs: costs.weight_bytes),
    ("the FLOPs of a forward pass", count, lambda costs: costs.flops),
    ("the memory kept for backward, with that for synthesis,", size, lambda costs: costs.kept_bytes),
)


def parts_table(captured: CapturedParts) -> Table:
    """Which modules of a model are graphs, and which were tried and stay eager, with the reason."""
    table = new_table("Parts")
    add_words(table, "module", "class")
    add_numbers(table, "parameters")
    add_words(table, "captured by, or why it stays eager")
    infos = ((part.path, part.graph_module.meta["capture"]) for part in captured.parts)
    rows = [(path, info.model, info.tracer) for path, info in infos]
    for path, kind, tracer in (*rows, *((e.path, e.kind, f"eager: {e.reason}") for e in captured.eager)):
        parameters = sum(parameter.numel() for parameter in captured.source.get_submodule(path).parameters())
        add_row(table, path or "the model itself", kind, count(parameters), tracer)
    return table


def sizes_table(captured: CapturedParts) -> Table:
    """The sizes that the graphs take, and the lines of the model that limit or fix them."""
    table = new_table("Sizes of the inputs")
    add_words(table, *([] if captured.whole else ["module"]), "dimension", "of")
    add_numbers(table, "example")
    add_words(table, "takes")
    for part in captured.parts:
        for one in dimensions_of(part.graph_module):
            more = len(one.inputs) - _MOST_INPUTS
            inputs = ", ".join(one.inputs[:_MOST_INPUTS]) + (f" and {more} more" if more > 0 else "")
            example = "-" if one.size is None else str(one.size)
            add_row(table, *([] if captured.whole else [part.path]), one.name, inputs, example, one.takes)
    return table


def scores_table(scores: Scores) -> Table:
    """The scores of each block, numbered as `--blocks` takes them, and why one has none."""
    table = new_table("Scores")
    add_numbers(table, "#")
    add_words(table, "block")
    kinds = ["rise of\nthe loss" if kind == "loss" else kind for kind in scores.kinds]
    add_numbers(table, *kinds, *(["goes as\nnumber"] if scores.greedy else []))
    reasons = any(score.reasons for score in scores.blocks)
    if reasons:
        add_words(table, "why not")
    values = [scores.of(kind) for kind in scores.kinds]
    for number, score in enumerate(scores.blocks, start=1):
        cells = [f"{found[score.block]:.4g}" if score.block in found else "-" for found in values]
        order = [str(score.greedy_rank or "-")] if scores.greedy else []
        why = ["; ".join(dict.fromkeys(score.reasons.values()))] if reasons else []
        add_row(table, str(number), score.block, *cells, *order, *why)
    return table


def costs_table(before: Costs, after: Costs | None = None) -> Table:
    """Costs of a model, or costs before and after a transform with the change in percent."""
    table = new_table("Costs" if after is None else "Before and after")
    add_words(table, "")
    add_numbers(table, *(("",) if after is None else ("before", "after", "change")))
    batch = f"batch {before.batch}" if before.parts is None else "one call of each part"
    lines: list[tuple[str, _Text, _Value]] = [
        ("parameters", count, lambda costs: costs.parameters),
        ("weights on disk", size, lambda costs: costs.weight_bytes),
        (f"FLOPs, forward, {batch}", count, lambda costs: costs.flops),
        (f"activations kept for backward, {batch}", size, lambda costs: costs.activation_bytes),
    ]
    if before.synthesis_bytes or (after is not None and after.synthesis_bytes):
        lines.append(("kept for synthesis, at any batch", size, lambda costs: costs.synthesis_bytes))
    for name, text, value in lines:
        if after is None:
            add_row(table, name, text(value(before)))
        else:
            add_row(table, name, text(value(before)), text(value(after)), change(value(before), value(after)))
    return table


def budget_table(shares: Mapping[str, Mapping[str, float | None]]) -> Table:
    """The table of a budget, from `budget_shares`."""
    table = new_table("Budget, of the original")
    add_words(table, "")
    add_numbers(table, "budget", "expected", "reached")
    for name, found in shares.items():
        add_row(table, name, *(_part(found[column]) for column in ("limit", "expected", "reached")))
    return table


def _part(number: float | None) -> str:
    return "-" if number is None else f"{number:.4f}"


def figures_table(figures: Mapping[str, Mapping[str, float]]) -> Table:
    """The figures of several models, such as loss and accuracy, by the names of both."""
    table = new_table("Figures")
    names = list(dict.fromkeys(name for found in figures.values() for name in found))
    add_words(table, "model")
    add_numbers(table, *names)
    for model, found in figures.items():
        add_row(table, model, *(f"{found[name]:.4f}" if name in found else "" for name in names))
    return table


def verification_table(verification: Verification) -> Table:
    """A row for each output and batch size: differences, and whether they are within the tolerance."""
    table = new_table("ONNX Runtime and PyTorch")
    add_words(table, "output")
    add_numbers(table, "batch", "max\nabs", "mean\nabs", "median\nabs", "max\nrel", "cosine", "top-1")
    table.add_column("verdict", no_wrap=True)
    for row in verification.rows:
        differences = (small(number) for number in (row.max_abs, row.mean_abs, row.median_abs, row.max_rel))
        agreement = "-" if row.top1_agreement is None else f"{100 * row.top1_agreement:.4g} %"
        at = "\n".join(filter(None, (str(row.batch), *row.sizes.split(", "))))
        add_row(table, row.output, at, *differences, f"{row.cosine:.6f}", agreement, _verdict(row))
    return table


def layers_table(verification: Verification) -> Table:
    """A row for each inner value that was compared, in the order of execution."""
    table = new_table("Layers")
    add_words(table, "layer")
    add_numbers(table, "max\nabs", "mean\nabs", "max\nrel", "cosine")
    table.add_column("verdict", no_wrap=True)
    for layer in verification.layers:
        row = layer.difference
        differences = (small(number) for number in (row.max_abs, row.mean_abs, row.max_rel))
        add_row(table, layer.module or layer.node, *differences, f"{row.cosine:.6f}", _verdict(row))
    return table


def training_table(measured: Benchmark) -> Table:
    """A row for each variant: time of a step of training, its spread, throughput and memory."""
    table = new_table(f"Training{_at(measured.training[0])}")
    add_words(table, "variant")
    memory = {"peak": "peak\nmemory", "kept": "kept for\nbackward"}[measured.memory]
    add_numbers(table, *_TIMES, memory, "parameters")
    for row in measured.training:
        parameters = None if row.sizes is None else row.sizes.parameters
        add_row(table, row.variant, *_times(measured, row), size(measured.bytes_of(row)), count(parameters))
    return table


def inference_table(measured: Benchmark) -> Table:
    """A row for each variant by each runtime at each batch size: latency, its spread and throughput."""
    table = new_table("Inference")
    add_numbers(table, "batch")
    add_words(table, "runtime", "variant")
    add_numbers(table, *_TIMES)
    for row in measured.inference:
        add_row(table, "-" if row.batch is None else str(row.batch), row.runtime, row.variant, *_times(measured, row))
    return table


def unmeasured_lines(measured: Benchmark) -> list[str]:
    """A line for each variant in each setting that was not measured, or not to the end, with the reason."""
    lines = []
    for row in measured.rows:
        if row.reason is not None:
            where = f"{row.runtime}{_at(row)}" if isinstance(row, InferenceRow) else "training"
            how_far = f"measured in {len(row.samples)} rounds only" if row.samples else "not measured"
            lines.append(f"{how_far}: {row.variant}, {where}: {row.reason}")
    return lines


def unsettled_lines(measured: Benchmark) -> list[str]:
    """The line that names times as parts of the original's whose spread is too wide to judge them; else none."""
    found = [
        f"{row.variant}, {f'{row.runtime}{_at(row)}' if isinstance(row, InferenceRow) else 'training'}"
        for row in measured.rows
        if row.variant != ORIGINAL and not measured.settled(row)
    ]
    if not found:
        return []
    return [
        f"warning: too wide a spread to judge what is taken of the original: {'; '.join(found)}; give more --rounds"
    ]


_TIMES = ("ms", "min-max", "of the\noriginal", "inputs/s")


def _times(measured: Benchmark, row: Row) -> tuple[str, ...]:
    spread, ratio = Spread.of(row.samples), measured.time_ratio(row)
    if spread is None:
        return ("-",) * len(_TIMES)
    ends = f"{milliseconds(spread.least)}-{milliseconds(spread.most)}"
    return milliseconds(spread.median), ends, "-" if ratio is None else f"{ratio:.2f}", _rate(row.throughput)


def _rate(number: float | None) -> str:
    """A number a second with three digits."""
    if number is None:
        return "-"
    return f"{number:#.3g}" if number < 99.95 else count(round(number))


def _at(row: Row) -> str:
    return "" if row.batch is None else f", batch {row.batch}"


def _verdict(row: Difference) -> str:
    return "equal" if row.passed else "DIFFERS"


def placing_line(in_place: InPlace) -> str:
    """Whether each surrogate has a place in the source's own tree, or which has none, and why."""
    if not in_place.refusals:
        return "in place: each surrogate is called as its block was; repl_fx.load(…, in_place=True) gives the class"
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

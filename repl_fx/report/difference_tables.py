"""Lines and tables of `repl-fx diff`."""

from __future__ import annotations

from rich.console import RenderableType

from repl_fx.display.columns import Table, words
from repl_fx.display.numbers import change, count
from repl_fx.report.model_graph.comparing import PlansDifference, WeightsDifference

# Names of tensors that a line tells.
_NAMED = 3


def difference_lines(found: PlansDifference) -> list[RenderableType]:
    """All that differs: the model, options, blocks, parameters and weights; one line where nothing does."""
    if not found:
        return [f"{found.one} and {found.other} are equal: {found.alike} {_blocks(found.alike)} the same"]
    lines: list[RenderableType] = [f"- {found.one}", f"+ {found.other}"]
    lines += [f"model: {one}" for one in found.model]
    lines += [f"options: {one}" for one in found.options]
    if found.blocks:
        lines += [_blocks_table(found), f"{found.alike} other {_blocks(found.alike)} the same"]
    before, after = found.parameters
    if before is not None and after is not None:
        lines.append(f"parameters: {count(before)} -> {count(after)} ({change(before, after)})")
    if found.weights is not None:
        lines.append(f"weights: {_weights_line(found.weights)}")
    return lines


def _blocks_table(found: PlansDifference) -> Table:
    rows = [
        (
            "" if number else block.block,
            one.what,
            *("" if value is None else str(value) for value in (one.one, one.other)),
        )
        for block in found.blocks
        for number, one in enumerate(block.changes)
    ]
    return Table("Blocks that differ", words("block", "what", "-", "+"), rows)


def _blocks(number: int) -> str:
    return "block is" if number == 1 else "blocks are"


def _weights_line(weights: WeightsDifference) -> str:
    parts = [f"{weights.equal} equal"]
    named = {"different": weights.different, "on the - side alone": weights.only_one}
    for what, names in {**named, "on the + side alone": weights.only_other}.items():
        if names:
            more = ", …" if len(names) > _NAMED else ""
            parts.append(f"{len(names)} {what} ({', '.join(names[:_NAMED])}{more})")
    return "; ".join(parts)

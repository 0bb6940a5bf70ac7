"""The repeats of a model together, and their table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from torch import fx

from repl_fx.display.columns import Table, numbers, words
from repl_fx.display.html import Displayed
from repl_fx.display.numbers import count, share
from repl_fx.finding.blocks import Block, Repeat


class WholeCosts(Protocol):
    """Costs of the whole model; None where they are unknown."""

    @property
    def parameters(self) -> int: ...

    @property
    def flops(self) -> int | None: ...


class Repeats(Displayed, tuple[Repeat, ...]):
    """Repeats as a tuple, which is shown as a table."""

    __slots__ = ()

    def displayed(self) -> Sequence[Table | str]:
        """The table of the repeats."""
        return (repeats_table(self) if self else "nothing repeats",)


def repeats_table(
    repeats: Sequence[Repeat], costs: WholeCosts | None = None, flops: Mapping[fx.Node, int] | None = None
) -> Table:
    """The repeats, and below each, indented, those inside its first copy.

    Args:
        costs: of the model, for the share that each has of it; without, there are no shares.
        flops: FLOPs by node (`flops_of_parts`); without, their column has no numbers.
    """
    columns = (
        *numbers("#"),
        *words("repeat"),
        *numbers("copies", "nodes", "parameters\na block", "parameters\nin all"),
    )
    if costs is not None:
        columns = (*columns, *numbers("share of\nthe model", "share of\nFLOPs"))
    rows = []
    for number, repeat in enumerate(repeats, start=1):
        (_, first), *inner = _rows(repeat, costs, flops)
        rows += [(str(number), *first), *(("", f"{'  ' * depth}{name}", *rest) for depth, (name, *rest) in inner)]
    return Table("Repeats", columns, rows)


def block_flops(block: Block, flops: Mapping[fx.Node, int] | None) -> int | None:
    """FLOPs of a block; None where they are unknown."""
    return None if flops is None else sum(flops.get(node, 0) for node in block.nodes)


def repeat_flops(repeat: Repeat, flops: Mapping[fx.Node, int] | None) -> int | None:
    """FLOPs of all copies of a repeat; None where they are unknown."""
    return None if flops is None else sum(block_flops(block, flops) or 0 for block in repeat.blocks)


def _rows(
    repeat: Repeat, costs: WholeCosts | None, flops: Mapping[fx.Node, int] | None, depth: int = 0
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """The cells of a repeat and of those inside its first copy, with how deep each lies."""
    first = repeat.blocks[0]
    cells: tuple[str, ...] = (
        repeat.name + (" (shared)" if repeat.shared else " (similar)" if repeat.similar else ""),
        str(len(repeat)),
        str(len(first.nodes)),
        count(first.size),
        count(repeat.size),
    )
    if costs is not None:
        cells = (*cells, share(repeat.size, costs.parameters), share(repeat_flops(repeat, flops), costs.flops))
    yield depth, cells
    for child in repeat.children:
        yield from _rows(child, costs, flops, depth + 1)

"""Find the repeated blocks of a graph by shift matching.

    node          0    1    2    3    4    5    6    7    8
    label         emb  fc   act  add  fc   act  add  fc   head
    equal at +3        yes  yes  yes  yes  no
    =>            one run of 4 at shift 3: 4 // 3 + 1 = 2 copies, begun at 1 or at 2

Two nodes match at shift p when their labels are equal (`repl_fx.finding.node_table`) and each tensor argument comes
either from the same distance back (a value of the block or of the one before it), or from the very same value (an input
all copies share), or from values that are computed alike from inputs and constants alone. No names take part, except to
choose where a copy begins when the structure leaves that open.
Shifts that cannot be periods are not tried: a period is the distance between two nodes whose surroundings look alike,
so the gaps between equal rolling hashes of labels are the candidates. That keeps the search near-linear.
Copies hand on one value where the structure allows such a cut, else as few as it allows (two streams of tokens, a sum
carried beside them). Blocks alike only up to sizes are found by `repl_fx.finding.find_similar`.
Never touches: the graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import fx

from repl_fx.arguments import require_module
from repl_fx.finding.block_names import BlockNames
from repl_fx.finding.block_values import blocks_of, share_parameters
from repl_fx.finding.blocks import Repeat
from repl_fx.finding.find_similar import find_similar
from repl_fx.finding.node_table import Bools, Ints, NodeTable, node_table
from repl_fx.finding.repeats import Repeats
from repl_fx.finding.segmentation import Cutting, TandemRun, cut, depends
from repl_fx.running.collection import collection_paused

# Every shift up to this is tried; longer ones only where windows of labels recur at that distance.
_SHORT = 48
_LAGS = 4
_FREQUENT = 4


@dataclass(frozen=True)
class _ChosenCutting:
    """A cutting that was chosen, with those inside its first copy."""

    cutting: Cutting
    children: tuple[_ChosenCutting, ...]


@collection_paused()
def find_repeats(gm: fx.GraphModule) -> Repeats:
    """Find runs of two or more isomorphic blocks, and sequences of similar ones.

    Args:
        gm: a graph in normal form.

    Returns:
        The repeats that cover the most parameters, in program order; repeats inside a block are `children` of its own.
        Behind them the similar repeats, with `similar` set, that are no part of one of the others. A tuple, which
        notebooks show as a table.

    Raises:
        BadInput: the argument is no graph.
    """
    require_module("find_repeats", gm, graph=True)
    table = node_table(gm)
    if len(table.nodes) < 2:
        return Repeats()
    names = BlockNames(table)
    exact = _nouns(_choose(table, _candidate_shifts(table)), names)
    similar = find_similar(exact, names)
    # The two halves of one residual block (convolution and norm, twice) are no blocks of their own.
    units = [block.node_set for repeat in similar for block in repeat.blocks]
    whole = [r for r in exact if not any(all(b.node_set <= unit for b in r.blocks) for unit in units)]
    return Repeats((*whole, *similar))


def _choose(table: NodeTable, shifts: Iterable[int]) -> list[_ChosenCutting]:
    """The cuttings that cover the most parameters, in program order, each with those inside its first copy."""
    found = [c for c in (cut(table, run) for run in _runs(table, shifts)) if c is not None]
    # Norms alone, one behind the other, are no block.
    found = [cutting for cutting in found if table.mixing[cutting.members].any()]
    weighed = [(int(table.sizes[cutting.members].sum()), cutting) for cutting in found]
    # Most parameters first; of equal ones the shortest period, because it has the most copies.
    weighed = sorted((w for w in weighed if w[0]), key=lambda w: (-w[0], -w[1].total, w[1].start))
    return _Chooser(table, [cutting for _, cutting in weighed]).among(range(len(weighed)), level=1)


class _Chooser:
    """Picks cuttings that do not overlap.

    A block that holds repeats of its own is taken apart where those would let more parameters go: two stages of twelve
    residual layers each are no repeat of two, from which nothing can go, but two of twelve.

    Args:
        cuttings: the best first.
    """

    def __init__(self, table: NodeTable, cuttings: Sequence[Cutting]) -> None:
        self.table = table
        self.cuttings = cuttings
        self.begins = [cutting.begin for cutting in cuttings]
        self.owned = np.zeros(len(table.nodes), np.int64)

    def among(self, numbers: Iterable[int], level: int) -> list[_ChosenCutting]:
        """Those of these cuttings that are chosen, in program order; inside a chosen one at each level above 1."""
        # A node that is free at this level is marked with the level above.
        chosen = []
        for number in numbers:
            cutting = self.cuttings[number]
            if (self.owned[cutting.members] != level - 1).any():
                continue
            first = cutting.members[0]
            self.owned[first] = level
            children = self.among(self._inside(number, first), level + 1)
            self.owned[first] = level - 1
            inner = sum(self._gain(child.cutting) for child in children if _has_spine(self.table, child.cutting))
            if cutting.total * inner > self._gain(cutting):
                continue
            self.owned[cutting.members] = level
            chosen.append(_ChosenCutting(cutting, tuple(children)))
        return sorted(chosen, key=lambda found: int(found.cutting.members[0, 0]))

    def _inside(self, number: int, first: Ints) -> list[int]:
        """The cuttings that begin in the first copy of one, but for itself, the best first."""
        low, high = int(first.min()), int(first.max())
        return [other for other, begin in enumerate(self.begins) if low <= begin <= high and other != number]

    def _gain(self, cutting: Cutting) -> int:
        """Parameters that can go when every second block does."""
        return (cutting.total - 1) // 2 * int(self.table.sizes[cutting.members[-1]].sum())


def _has_spine(table: NodeTable, cutting: Cutting) -> bool:
    """Tell whether the streamed values pass a copy on a way around all weights: then something is left without."""
    start = cutting.start + (cutting.copies - 1) * cutting.period
    return all(
        depends(table, start, offset, [start - cutting.period + place for place in cutting.streamed], table.mixing)
        for offset in cutting.streamed
    )


# --- runs -----------------------------------------------------------------------------------------------------------


def _runs(table: NodeTable, shifts: Iterable[int]) -> Iterator[TandemRun]:
    parameters = np.concatenate(([0], table.sizes.cumsum()))
    for period in shifts:
        matches = match_at_shift(table, period)
        edges = np.flatnonzero(np.diff(np.concatenate(([0], matches.view(np.int8), [0]))))
        starts, stops = edges[::2], edges[1::2]
        worth = stops - starts >= period
        # A repeat of nothing but activations has nothing to save.
        worth &= parameters[stops + period] > parameters[starts]
        for start, stop in zip(starts[worth].tolist(), stops[worth].tolist(), strict=True):
            yield TandemRun(start, stop + period, period)


def match_at_shift(table: NodeTable, shift: int) -> Bools:
    """Mark the nodes that match the node `shift` places on; bool array (N - shift,)."""
    matches: Bools = table.labels[:-shift] == table.labels[shift:]
    # Few labels are equal at most shifts, and rows of arguments can be wide.
    places = np.flatnonzero(matches)
    here, there = table.arguments[places], table.arguments[places + shift]
    inside = (here >= 0) & (there - here == shift)
    alike = inside | (here == there)
    if table.value_numbers.any():
        rows, slots = np.nonzero(~alike)
        ours, theirs = here[rows, slots], there[rows, slots]
        made = (ours >= 0) & (theirs >= 0) & (table.value_numbers[ours] > 0)
        alike[rows, slots] = made & (table.value_numbers[ours] == table.value_numbers[theirs])
    matches[places] = alike.all(axis=1)
    return matches


def _candidate_shifts(table: NodeTable) -> list[int]:
    """Shifts worth trying, ascending.

    Two copies of a block of p nodes have windows of up to p / 2 nodes that recur after p nodes and nowhere between,
    even where a shorter repeat fills much of the block; so windows of every power of two are compared.
    """
    count = len(table.nodes)
    shifts = set(range(1, min(_SHORT, count - 1) + 1))
    hashes = table.labels.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    window = 1
    while window < count:
        order = np.argsort(hashes, kind="stable")
        for lag in range(1, min(_LAGS, len(order) - 1) + 1):
            same = hashes[order[lag:]] == hashes[order[:-lag]]
            gaps = (order[lag:] - order[:-lag])[same]
            values, counts = np.unique(gaps, return_counts=True)
            # A period recurs for a good part of the nodes of a copy; single coincidences do not.
            shifts.update(values[counts * 4 >= values].tolist())
            # Where a shorter repeat fills a copy, only the few nodes outside that one tell the period.
            shifts.update(values[np.argsort(-counts, kind="stable")[:_FREQUENT]].tolist())
        # Hashes of twice the window, from those of its halves.
        mixed = hashes[:-window] * np.uint64(0xBF58476D1CE4E5B9) + hashes[window:]
        hashes = mixed ^ (mixed >> np.uint64(29))
        window *= 2
    return sorted(shift for shift in shifts if shift < count)


# --- nouns ----------------------------------------------------------------------------------------------------------


def _nouns(chosen: Sequence[_ChosenCutting], named: BlockNames) -> tuple[Repeat, ...]:
    # The outer names first: an inner repeat must not take the name that its block would have.
    repeats = [_repeat(found.cutting, named) for found in chosen]
    return tuple(
        replace(repeat, children=_nouns(found.children, named)) for repeat, found in zip(repeats, chosen, strict=True)
    )


def _repeat(cutting: Cutting, named: BlockNames) -> Repeat:
    members = cutting.members
    name, names = named.names(members.tolist())
    # Copy after copy takes the streamed values in the same places.
    second = named.table.arguments[members[1]]
    streams = [second == int(members[0, offset]) for offset in cutting.streamed]
    blocks = blocks_of(named, names, members, streams, cutting.streamed)
    return Repeat(name, tuple(blocks), shared=share_parameters(blocks), own=False)

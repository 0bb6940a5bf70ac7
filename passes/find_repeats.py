"""Find the repeated blocks of a graph by shift matching.

    node          0    1    2    3    4    5    6    7    8
    label         emb  fc   act  add  fc   act  add  fc   head
    equal at +3        yes  yes  yes  yes  no
    =>            one run of 4 at shift 3: 4 // 3 + 1 = 2 copies, begun at 1 or at 2

Two nodes match at shift p when their labels are equal (`repl_fx.node_table`) and each tensor argument comes either
from the same distance back (a value of the block or of the one before it) or from the very same value (an input all
copies share). No names take part, except to choose where a copy begins when the structure leaves that open.
Shifts that cannot be periods are not tried: a period is the distance between two nodes whose surroundings look alike,
so the gaps between equal rolling hashes of labels are the candidates. That keeps the search near-linear.
Copies hand on one value where the structure allows such a cut, else as few as it allows (two streams of tokens, a sum
carried beside them). Blocks alike only up to sizes are found by `repl_fx.passes.find_similar`.
Never touches: the graph.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
from torch import fx

from repl_fx.block_names import BlockNames
from repl_fx.block_values import boundaries
from repl_fx.blocks import Block, Repeat
from repl_fx.graph import attribute
from repl_fx.memory import collection_paused
from repl_fx.node_table import NONE, NodeTable, node_table
from repl_fx.passes.find_similar import find_similar

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# Every shift up to this is tried; longer ones only where windows of labels recur at that distance.
_SHORT = 48
_LAGS = 4
_FREQUENT = 4
# Values handed from copy to copy; a cut that more than this cross is no boundary of a block.
_STREAMS = 4


@dataclass(frozen=True)
class _Run:
    """Nodes [start, stop) repeat with `period`, at least once."""

    start: int
    stop: int
    period: int


@dataclass(frozen=True)
class _Cutting:
    """Where the copies of a run begin, and what passes from one to the next.

    Attributes:
        start: position of the first copy that matches strictly.
        period: nodes in a copy.
        copies: how many such copies.
        streamed: positions of the streamed values within a copy.
        first: for a copy before `start` that differs only in where its input comes from, its nodes in the order of the
            other copies'; None where there is none.
    """

    start: int
    period: int
    copies: int
    streamed: tuple[int, ...]
    first: tuple[int, ...] | None

    @property
    def total(self) -> int:
        return self.copies + (self.first is not None)

    @cached_property
    def members(self) -> Ints:
        """Positions of the nodes of each copy: int array (total, period)."""
        strict = np.arange(self.start, self.start + self.copies * self.period).reshape(self.copies, self.period)
        return strict if self.first is None else np.vstack([np.array(self.first, np.int64), strict])

    @cached_property
    def begin(self) -> int:
        return self.start if self.first is None else min(self.first)


@dataclass(frozen=True)
class _Found:
    """A cutting that was chosen, with those inside its first copy."""

    cutting: _Cutting
    children: tuple[_Found, ...]


@collection_paused()
def find_repeats(gm: fx.GraphModule) -> tuple[Repeat, ...]:
    """Find runs of two or more isomorphic blocks, and sequences of similar ones.

    Args:
        gm: a graph in normal form.

    Returns:
        The repeats that cover the most parameters, in program order; repeats inside a block are `children` of its own.
        Behind them the similar repeats, with `similar` set, that are no part of one of the others.
    """
    table = node_table(gm)
    if len(table.nodes) < 2:
        return ()
    names = BlockNames(table)
    exact = _nouns(gm, table, _choose(table, _candidate_shifts(table)), names)
    return (*exact, *find_similar(gm, table, exact, names))


def _choose(table: NodeTable, shifts: Iterable[int]) -> list[_Found]:
    """The cuttings that cover the most parameters, in program order, each with those inside its first copy."""
    found = [c for c in (_cut(table, run) for run in _runs(table, shifts)) if c is not None]
    weighed = [(int(table.sizes[cutting.members].sum()), cutting) for cutting in found]
    # Most parameters first; of equal ones the shortest period, because it has the most copies.
    weighed = sorted((w for w in weighed if w[0]), key=lambda w: (-w[0], -w[1].total, w[1].start))
    return _Chooser(table, [cutting for _, cutting in weighed]).choose()


class _Chooser:
    """Picks cuttings that do not overlap.

    A block that holds repeats of its own is taken apart where those would let more parameters go: two stages of twelve
    residual layers each are no repeat of two, from which nothing can go, but two of twelve.

    Args:
        cuttings: the best first.
    """

    def __init__(self, table: NodeTable, cuttings: Sequence[_Cutting]) -> None:
        self.table = table
        self.cuttings = cuttings
        self.order = sorted(range(len(cuttings)), key=lambda i: cuttings[i].begin)
        self.begins = [cuttings[i].begin for i in self.order]
        self.owned = np.zeros(len(table.nodes), np.int64)

    def choose(self) -> list[_Found]:
        """The chosen ones, in program order."""
        return self._among(range(len(self.cuttings)), level=1)

    def _among(self, numbers: Iterable[int], level: int) -> list[_Found]:
        # A node that is free at this level is marked with the level above.
        chosen = []
        for number in numbers:
            cutting = self.cuttings[number]
            if (self.owned[cutting.members] != level - 1).any():
                continue
            first = cutting.members[0]
            self.owned[first] = level
            children = self._among(self._inside(number, first), level + 1)
            self.owned[first] = level - 1
            inner = sum(self._gain(child.cutting) for child in children if _has_spine(self.table, child.cutting))
            if cutting.total * inner > self._gain(cutting):
                continue
            self.owned[cutting.members] = level
            chosen.append(_Found(cutting, tuple(children)))
        for found in chosen:
            self.owned[found.cutting.members] = level - 1
        return sorted(chosen, key=lambda found: int(found.cutting.members[0, 0]))

    def _inside(self, number: int, first: Ints) -> list[int]:
        """The cuttings that begin in the first copy of one, but for itself, the best first."""
        low, high = bisect_left(self.begins, int(first.min())), bisect_left(self.begins, int(first.max()) + 1)
        return sorted(other for other in self.order[low:high] if other != number)

    def _gain(self, cutting: _Cutting) -> int:
        """Parameters that can go when every second block does."""
        return (cutting.total - 1) // 2 * int(self.table.sizes[cutting.members[-1]].sum())


def _has_spine(table: NodeTable, cutting: _Cutting) -> bool:
    """Whether the streamed values pass a copy on a way around all weights, so that something is left without them."""
    start = cutting.start + (cutting.copies - 1) * cutting.period
    return all(
        _depends(table, start, offset, [start - cutting.period + place for place in cutting.streamed], table.mixing)
        for offset in cutting.streamed
    )


# --- runs -----------------------------------------------------------------------------------------------------------


def _runs(table: NodeTable, shifts: Iterable[int]) -> Iterator[_Run]:
    parameters = np.concatenate(([0], table.sizes.cumsum()))
    for period in shifts:
        matches = match_at_shift(table, period)
        edges = np.flatnonzero(np.diff(np.concatenate(([0], matches.view(np.int8), [0]))))
        starts, stops = edges[::2], edges[1::2]
        worth = stops - starts >= period
        # A repeat of nothing but activations has nothing to save.
        worth &= parameters[stops + period] > parameters[starts]
        for start, stop in zip(starts[worth].tolist(), stops[worth].tolist(), strict=True):
            yield _Run(start, stop + period, period)


def match_at_shift(table: NodeTable, shift: int) -> Bools:
    """Which nodes match the node `shift` places on; bool array (N - shift,)."""
    matches: Bools = table.labels[:-shift] == table.labels[shift:]
    # Few labels are equal at most shifts, and rows of arguments can be wide.
    places = np.flatnonzero(matches)
    here, there = table.arguments[places], table.arguments[places + shift]
    inside = (here >= 0) & (there - here == shift)
    alike = inside | (here == there)
    if table.has_twins:
        rows, slots = np.nonzero(~alike)
        ours, theirs = here[rows, slots], there[rows, slots]
        made = (ours >= 0) & (theirs >= 0) & (table.twins[ours] > 0)
        alike[rows, slots] = made & (table.twins[ours] == table.twins[theirs])
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


# --- cuts -----------------------------------------------------------------------------------------------------------


def _cut(table: NodeTable, run: _Run) -> _Cutting | None:
    """Choose where the copies of a run begin: fewest streamed values, most copies, shallowest module boundary."""
    crossing = _Crossing(table, run)
    for streams in range(1, _STREAMS + 1):
        cutting = _cut_across(table, run, crossing, streams)
        if cutting is not None:
            return cutting
    return None


def _cut_across(table: NodeTable, run: _Run, crossing: _Crossing, streams: int) -> _Cutting | None:
    """The best of the cuts that so many values cross."""
    period = run.period
    best: tuple[tuple[int, int, int], _Cutting] | None = None
    mismatches = _Mismatches()
    for start, copies in crossing.phases(streams):
        inner = start + (copies - 1) * period
        depth = _boundary_depth(table, inner)
        # One more copy to the left is the most there can be, so this cannot win any more.
        if best is not None and (copies + 1, -depth) <= (best[0][0], best[0][1]):
            continue
        streamed = crossing.values(inner)
        offsets = tuple(value - (inner - period) for value in streamed)
        # A value that only a copy behind the last one takes is handed over two cuts.
        if offsets[0] < 0 or not all(_taken_in(table, value, inner, period) for value in streamed):
            continue
        if not all(crossing.passes(inner, inner + o) or _depends(table, inner, o, streamed) for o in offsets):
            continue
        cutting = _extended(table, start, period, copies, offsets, mismatches)
        rank = cutting.total, -depth, -start
        if best is None or rank > best[0]:
            best = rank, cutting
    return best[1] if best else None


def _depends(table: NodeTable, start: int, offset: int, sources: Sequence[int], around: Bools | None = None) -> bool:
    """Whether what the copy at `start` makes depends on what it takes, on a way around some nodes.

    Projections of one value, side by side, can be cut so that one value crosses, but nothing flows through.
    """
    if around is not None and around[start + offset]:
        return False
    pending = [start + offset]
    seen = set(pending)
    while pending:
        for feeder in table.arguments[pending.pop()].tolist():
            if feeder in sources:
                return True
            if feeder >= start and feeder not in seen and not (around is not None and around[feeder]):
                seen.add(feeder)
                pending.append(feeder)
    return False


def _taken_in(table: NodeTable, value: int, start: int, period: int) -> bool:
    """Whether the copy at `start` takes a value."""
    rows, _ = table.uses(value)
    return bool(((rows >= start) & (rows < start + period)).any())


class _Crossing:
    """For each cut within a run, the values of the run that are used across it."""

    def __init__(self, table: NodeTable, run: _Run) -> None:
        start, stop, period = run.start, run.stop, run.period
        length = stop - start
        arguments = table.arguments[start:stop] - start
        users = np.broadcast_to(np.arange(length)[:, None], arguments.shape)
        # An input that a copy shares with the next or the previous copy is no part of the stream.
        shared = np.zeros(arguments.shape, bool)
        same = arguments[period:] == arguments[:-period]
        shared[period:] |= same
        shared[:-period] |= same
        streamed = (arguments >= 0) & ~shared
        last_use = np.full(length, -1, np.int64)
        np.maximum.at(last_use, arguments[streamed], users[streamed])
        made = np.flatnonzero(last_use >= 0)
        change = np.zeros(length + 2, np.int64)
        np.add.at(change, made + 1, 1)
        np.add.at(change, last_use[made] + 1, -1)
        self._start, self._period = start, period
        self._arguments, self._streamed = arguments, streamed
        self._last_use = last_use
        self._made, self._latest = made, np.maximum.accumulate(last_use[made])
        self._counts = change.cumsum()

    def phases(self, streams: int) -> Iterator[tuple[int, int]]:
        """The first node and the number of copies, two or more, of the ways to cut that so many values cross."""
        period, length = self._period, len(self._last_use)
        starts = np.arange(min(period, length - period + 1))
        copies = (length - starts) // period
        kept = (copies >= 2) & (self._counts[starts + (copies - 1) * period] == streams)
        yield from zip((starts[kept] + self._start).tolist(), copies[kept].tolist(), strict=True)

    def values(self, cut: int) -> tuple[int, ...]:
        """The positions of the values that cross; only -1 where one is older than the copy before the cut."""
        here = cut - self._start
        # The oldest is the first of all that are used this late.
        oldest = int(self._made[np.searchsorted(self._latest, here)])
        if oldest < here - self._period:
            return (-1,)
        crossing = np.flatnonzero(self._last_use[oldest:here] >= here) + oldest + self._start
        return tuple(crossing.tolist())

    def passes(self, cut: int, value: int) -> bool:
        """Whether a value of the last copy, which begins at a cut, comes from a value that crosses the cut.

        Seen for streamed values alone, at the cost of one walk for all cuts; what is made from the same value by way
        of inputs that copies share is not seen.
        """
        return self._oldest[value - self._start - self._last] < cut - self._start

    @property
    def _last(self) -> int:
        """Where the earliest of the last copies begins."""
        return max(0, len(self._last_use) - 2 * self._period)

    @cached_property
    def _oldest(self) -> list[int]:
        """For the nodes from `_last` on, the oldest value each is made from."""
        last, oldest = self._last, list[int]()
        rows = np.where(self._streamed[last:], self._arguments[last:], len(self._last_use)).tolist()
        for position, row in enumerate(rows, last):
            feeder = min(row, default=position)
            if feeder >= last:
                feeder = min((oldest[f - last] for f in row if f < position), default=position)
            oldest.append(feeder)
        return oldest


def _boundary_depth(table: NodeTable, cut: int) -> int:
    """How many module levels the nodes on both sides of a cut share."""
    before, after = table.path(cut - 1), table.path(cut)
    depth = 0
    while depth < min(len(before), len(after)) and before[depth] == after[depth]:
        depth += 1
    return depth


def _extended(
    table: NodeTable, start: int, period: int, copies: int, offsets: tuple[int, ...], mismatches: _Mismatches
) -> _Cutting:
    """A cutting, with one more copy on the left where that copy differs only in where its input comes from."""
    entries = _entries(table, start, period, offsets)
    first = None if entries is None else _match_backwards(table, start, period, offsets, entries, mismatches)
    return _Cutting(start, period, copies, offsets, first)


def _entries(table: NodeTable, start: int, period: int, offsets: Sequence[int]) -> tuple[int, ...] | None:
    """What the first strict copy takes where later copies take the streamed values; None where that is not one each."""
    entries: list[int] = []
    for offset in offsets:
        rows, slots = table.uses(start + offset)
        later = (rows >= start + period) & (rows < start + 2 * period)
        values = set(table.arguments[rows[later] - period, slots[later]].tolist())
        if len(values) != 1 or min(values) < 0:
            return None
        entries += values
    return tuple(entries)


@dataclass(frozen=True)
class _Mismatches:
    """Pairs of nodes that cannot match, as the nodes they are made from do not; shared by all phases of a run.

    Without them, each phase of a run would go back to the same mismatch at its left end.

    Attributes:
        culprits: for each pair the node, in the later copy, of the pair that is to blame.
    """

    culprits: dict[tuple[int, int], int] = field(default_factory=dict)

    def known(self, pattern: int, found: int, start: int) -> int | None:
        """The culprit of a pair, where that is part of the copy at `start`."""
        culprit = self.culprits.get((pattern, found))
        return culprit if culprit is not None and culprit >= start else None

    def note(self, pattern: int | None, image: dict[int, int], users: dict[int, int], culprit: int) -> None:
        """Blame one pair for all that led to it."""
        while pattern is not None:
            self.culprits[pattern, image[pattern]] = culprit
            pattern = users.get(pattern)


def _match_backwards(
    table: NodeTable,
    start: int,
    period: int,
    offsets: Sequence[int],
    entries: Sequence[int],
    mismatches: _Mismatches,
) -> tuple[int, ...] | None:
    """Match the copy at `start`, from its outputs backwards, onto nodes that end in `entries`.

    The order of the nodes does not matter here, nor does what stands between them: T5's first layer computes the
    position bias that the others reuse.
    """
    stream_at = {start + offset: stream for stream, offset in enumerate(offsets)}
    image: dict[int, int] = {}
    # The user by which a node was reached, where it is reached so from every phase.
    users: dict[int, int] = {}
    for offset, entry in zip(offsets, entries, strict=True):
        if image.setdefault(start + offset, entry) != entry:
            return None
    pending = list(image)
    streams: dict[int, set[int]] = {stream: set() for stream in range(len(offsets))}
    while pending:
        pattern = pending.pop()
        found = image[pattern]
        culprit = mismatches.known(pattern, found, start)
        if culprit is None and (found < 0 or table.labels[found] != table.labels[pattern]):
            culprit = pattern
        if culprit is not None:
            mismatches.note(pattern, image, users, culprit)
            return None
        if found >= start:
            return None
        row, other = table.arguments[pattern].tolist(), table.arguments[found].tolist()
        later = table.arguments[pattern + period].tolist()
        for ours, theirs, next_ in zip(row, other, later, strict=True):
            stream = stream_at.get(next_, NONE)
            if stream != NONE:
                streams[stream].add(theirs)
            elif ours >= start:
                if ours not in image:
                    pending.append(ours)
                    if next_ == ours + period:
                        users[ours] = pattern
                if image.setdefault(ours, theirs) != theirs:
                    return None
            elif not table.same(ours, theirs):
                return None
    whole = range(start, start + period)
    if any(len(values) != 1 or NONE in values for values in streams.values()):
        return None
    stream_of = {stream: next(iter(values)) for stream, values in streams.items()}
    for pattern in whole:
        # What the output does not depend on, such as a skip value that is made beside it.
        if pattern in image:
            continue
        row, later = table.arguments[pattern].tolist(), table.arguments[pattern + period].tolist()
        wanted = [
            stream_of[stream_at[next_]] if next_ in stream_at else image.get(value, NONE) if value >= start else value
            for value, next_ in zip(row, later, strict=True)
        ]
        alike = (table.labels[:start] == table.labels[pattern]) & (table.arguments[:start] == wanted).all(axis=1)
        unused = [found for found in np.flatnonzero(alike).tolist() if found not in image.values()]
        if not unused:
            return None
        image[pattern] = unused[0]
    if len(set(image.values())) != period:
        return None
    return tuple(image[p] for p in whole)


# --- nouns ----------------------------------------------------------------------------------------------------------


def _nouns(gm: fx.GraphModule, table: NodeTable, chosen: Sequence[_Found], named: BlockNames) -> tuple[Repeat, ...]:
    # The outer names first: an inner repeat must not take the name that its block would have.
    repeats = [_repeat(gm, table, found.cutting, named) for found in chosen]
    return tuple(
        replace(repeat, children=_nouns(gm, table, found.children, named))
        for repeat, found in zip(repeats, chosen, strict=True)
    )


def _repeat(gm: fx.GraphModule, table: NodeTable, cutting: _Cutting, named: BlockNames) -> Repeat:
    members = cutting.members
    name, names = named.names(members.tolist())
    parameters = [tuple(p for i in copy for p in table.parameters[i]) for copy in members.tolist()]
    # Tied tensors may go by several names.
    tensors = [[id(attribute(gm, path)) for path in paths] for paths in parameters]
    # Copy after copy takes the streamed values in the same places.
    second = table.arguments[members[1]]
    streams = [second == int(members[0, offset]) for offset in cutting.streamed]
    blocks = [
        Block(
            name=names[number],
            nodes=values.nodes,
            inputs=values.inputs,
            outputs=values.outputs,
            taps=values.taps,
            side_inputs=values.side_inputs,
            parameters=parameters[number],
            module_path=names[number] if named.is_module(names[number], values.nodes[: cutting.period]) else None,
            size=int(table.sizes[members[number]].sum()),
        )
        for number, values in enumerate(boundaries(table, members, streams, cutting.streamed))
    ]
    return Repeat(name, tuple(blocks), shared=bool(parameters[0]) and all(t == tensors[0] for t in tensors))

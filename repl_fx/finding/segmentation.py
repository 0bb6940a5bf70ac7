"""Where the copies of a run of matching nodes begin, and what passes from one to the next.

    nodes      emb | fc  act  add | fc  act  add | head       a run of 6 at period 3
    crossing       1    2    2    1    2    2    1            values that copies hand on, at each cut
    =>             ^              ^                           copies begin where the fewest cross

Of the cuts with the fewest values, those that give the most copies are taken, and on ties the one at the shallowest
module boundary. The first copy may differ in where its input comes from: the run is extended to the left by one copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from repl_fx.finding.node_table import NONE, Bools, Ints, NodeTable, common_path

# Values handed from copy to copy; a cut that more than this cross is no boundary of a block.
_STREAMS = 4


class Blamed(dict[tuple[int, int], int]):
    """For pairs of nodes that cannot match, as the nodes they are made from do not, the pattern of the pair to blame.

    Shared by all phases of a run: without it, each phase would go back to the same mismatch at its left end.
    """


@dataclass(frozen=True)
class TandemRun:
    """Nodes [start, stop) repeat with `period`, at least once."""

    start: int
    stop: int
    period: int


@dataclass(frozen=True)
class Cutting:
    """The cuts between the copies of a run, and the values that pass from one to the next.

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


def cut(table: NodeTable, run: TandemRun) -> Cutting | None:
    """Choose where the copies of a run begin: fewest streamed values, most copies, shallowest module boundary."""
    crossing = _Crossing(table, run)
    cuttings = (_cut_across(table, run, crossing, streams) for streams in range(1, _STREAMS + 1))
    return next(filter(None, cuttings), None)


def _cut_across(table: NodeTable, run: TandemRun, crossing: _Crossing, streams: int) -> Cutting | None:
    """The best of the cuts that so many values cross."""
    period = run.period
    best: tuple[tuple[int, int, int], Cutting] | None = None
    blamed = Blamed()
    for start, copies in crossing.phases(streams):
        inner = start + (copies - 1) * period
        depth = len(common_path(table.paths[inner - 1 : inner + 1]))
        # One more copy to the left is the most there can be, so this cannot win any more.
        if best is not None and (copies + 1, -depth) <= (best[0][0], best[0][1]):
            continue
        streamed = crossing.values(inner)
        offsets = tuple(value - (inner - period) for value in streamed)
        if offsets[0] < 0:
            continue
        # A value that only a copy behind the last one takes is handed over two cuts.
        takers = (table.uses(value)[0] for value in streamed)
        if not all(((rows >= inner) & (rows < inner + period)).any() for rows in takers):
            continue
        if not all(crossing.passes(inner, inner + o) or depends(table, inner, o, streamed) for o in offsets):
            continue
        # One more copy on the left, where that differs only in where its input comes from.
        first = _match_backwards(table, start, period, offsets, blamed)
        cutting = Cutting(start, period, copies, offsets, first)
        rank = cutting.total, -depth, -start
        if best is None or rank > best[0]:
            best = rank, cutting
    return best[1] if best else None


def depends(table: NodeTable, start: int, offset: int, sources: Sequence[int], around: Bools | None = None) -> bool:
    """Tell whether the result of the copy at `start` depends on its streamed input by a path that avoids some nodes.

    Projections of one value, side by side, can be cut so that one value crosses, but nothing flows through.
    """
    # A walk of its own, as it stays in one copy: asked at every cut of a run, where networkx would need a graph each.
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


class _Crossing:
    """For each cut within a run, the values of the run that are used across it."""

    def __init__(self, table: NodeTable, run: TandemRun) -> None:
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
        """Tell whether a value of the last copy, which begins at a cut, comes from a value that crosses the cut.

        Seen for streamed values alone, at the cost of one walk for all cuts; what is made from the same value by way
        of inputs that copies share is not seen.
        """
        return self._oldest[value - self._start - self._last] < cut - self._start

    @property
    def _last(self) -> int:
        """The beginning of the earliest of the last copies."""
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


def _entries(table: NodeTable, start: int, period: int, offsets: Sequence[int]) -> tuple[int, ...] | None:
    """Inputs of the first strict copy that match the streamed values of later ones; None where not one each."""
    entries: list[int] = []
    for offset in offsets:
        rows, slots = table.uses(start + offset)
        later = (rows >= start + period) & (rows < start + 2 * period)
        values = set(table.arguments[rows[later] - period, slots[later]].tolist())
        if len(values) != 1 or min(values) < 0:
            return None
        entries += values
    return tuple(entries)


def _match_backwards(
    table: NodeTable,
    start: int,
    period: int,
    offsets: Sequence[int],
    blamed: Blamed,
) -> tuple[int, ...] | None:
    """Match the copy at `start`, from its outputs backwards, onto nodes that end in its inputs (`_entries`).

    The order of the nodes does not matter here, nor does what stands between them: T5's first layer computes the
    position bias that the others reuse.
    """
    entries = _entries(table, start, period, offsets)
    if entries is None:
        return None
    image = {start + offset: entry for offset, entry in zip(offsets, entries, strict=True)}
    stream_at = {start + offset: stream for stream, offset in enumerate(offsets)}
    streams = _led_to(table, start, period, image, stream_at, blamed)
    if streams is None or any(len(values) != 1 or NONE in values for values in streams.values()):
        return None
    stream_of = {stream: next(iter(values)) for stream, values in streams.items()}
    whole = range(start, start + period)
    for pattern in whole:
        # Nodes that the output does not depend on, such as a skip value that is made beside it.
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


def _led_to(
    table: NodeTable,
    start: int,
    period: int,
    image: dict[int, int],
    stream_at: Mapping[int, int],
    blamed: Blamed,
) -> dict[int, set[int]] | None:
    """Follow the nodes of a copy and their images backwards, by arguments in the same places.

    Args:
        image: the images of the copy's outputs; those of all nodes that lead to them are added.
        stream_at: the number of the stream by the node that ends it.
        blamed: which node is to blame for a pair that has no match; a pair that fails is added.

    Returns:
        For each stream, what stands in the place of its input in front of the images. None where a pair has no match.
    """
    streams: dict[int, set[int]] = {stream: set() for stream in stream_at.values()}
    # The user by which a node was reached, where it is reached so from every phase.
    users: dict[int, int] = {}
    pending = list(image)
    while pending:
        pattern = pending.pop()
        found = image[pattern]
        culprit = blamed.get((pattern, found), NONE)
        if culprit < start and (found < 0 or table.labels[found] != table.labels[pattern]):
            culprit = pattern
        if culprit >= start:
            # All that led to the pair is blamed on it too.
            reached: int | None = pattern
            while reached is not None:
                blamed[reached, image[reached]] = culprit
                reached = users.get(reached)
            return None
        if found >= start:
            return None
        places = (table.arguments[node].tolist() for node in (pattern, found, pattern + period))
        for ours, theirs, next_ in zip(*places, strict=True):
            if next_ in stream_at:
                streams[stream_at[next_]].add(theirs)
            elif ours >= start:
                if ours not in image:
                    pending.append(ours)
                    if next_ == ours + period:
                        users[ours] = pattern
                if image.setdefault(ours, theirs) != theirs:
                    return None
            elif not table.same(ours, theirs):
                return None
    return streams

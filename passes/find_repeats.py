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
Never touches: the graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from torch import fx

from repl_fx.block_names import BlockNames
from repl_fx.blocks import Block, Repeat
from repl_fx.graph import attribute
from repl_fx.node_table import NONE, NodeTable, node_table

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# Every shift up to this is tried; longer ones only where windows of labels recur at that distance.
_SHORT = 48
_LAGS = 4
_FREQUENT = 4


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
        streamed: position of the streamed value within a copy.
        first: for a copy before `start` that differs only in where its input comes from, its nodes in the order of the
            other copies'; None where there is none.
    """

    start: int
    period: int
    copies: int
    streamed: int
    first: tuple[int, ...] | None

    @property
    def total(self) -> int:
        return self.copies + (self.first is not None)

    @cached_property
    def members(self) -> Ints:
        """Positions of the nodes of each copy: int array (total, period)."""
        strict = np.arange(self.start, self.start + self.copies * self.period).reshape(self.copies, self.period)
        return strict if self.first is None else np.vstack([np.array(self.first, np.int64), strict])


def find_repeats(gm: fx.GraphModule) -> tuple[Repeat, ...]:
    """Find runs of two or more isomorphic blocks, each with one streamed value in and out.

    Args:
        gm: a graph in normal form.

    Returns:
        The repeats that cover the most parameters, in program order; repeats inside a block are `children` of its own.
    """
    table = node_table(gm)
    if len(table.nodes) < 2:
        return ()
    return _nouns(gm, table, _choose(table, _candidate_shifts(table)))


def _choose(table: NodeTable, shifts: Iterable[int]) -> list[tuple[_Cutting, list[_Cutting]]]:
    """The cuttings that cover the most parameters, in program order, each with those inside its first copy."""
    found = [c for c in (_cut(table, run) for run in _runs(table, shifts)) if c is not None]
    weighed = [(int(table.sizes[cutting.members].sum()), cutting) for cutting in found]
    # Most parameters first; of equal ones the shortest period, because it has the most copies.
    weighed = sorted((w for w in weighed if w[0]), key=lambda w: (-w[0], -w[1].total, w[1].start))
    chosen: list[tuple[_Cutting, list[_Cutting]]] = []
    owner = np.full(len(table.nodes), -1)
    # Whether a node is in the first copy of its owner, and not yet in a repeat inside it.
    free = np.zeros(len(table.nodes), bool)
    for _, cutting in weighed:
        covered = cutting.members.ravel()
        owners = owner[covered]
        if (owners == -1).all():
            owner[covered] = len(chosen)
            free[cutting.members[0]] = True
            chosen.append((cutting, []))
        elif (owners == owners[0]).all() and free[covered].all():
            free[covered] = False
            chosen[owners[0]][1].append(cutting)
    return sorted(chosen, key=lambda pair: int(pair[0].members[0, 0]))


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
    here, there = table.arguments[:-shift], table.arguments[shift:]
    inside = (here >= 0) & (there - here == shift)
    matches: Bools = (table.labels[:-shift] == table.labels[shift:]) & (inside | (here == there)).all(axis=1)
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
    """Choose where the copies of a run begin: one streamed value, most copies, shallowest module boundary."""
    period = run.period
    crossing = _crossing(table, run)
    best: tuple[tuple[int, int, int], _Cutting] | None = None
    for phase in range(min(period, run.stop - run.start - period + 1)):
        start = run.start + phase
        copies = (run.stop - start) // period
        if copies < 2:
            break
        inner = start + (copies - 1) * period
        streamed = crossing.get(inner)
        if streamed is None or streamed < inner - period:
            continue
        depth = _boundary_depth(table, inner)
        # One more copy to the left is the most there can be, so this cannot win any more.
        if best is not None and (copies + 1, -depth) <= (best[0][0], best[0][1]):
            continue
        offset = streamed - (inner - period)
        if not _depends(table, inner, offset, streamed):
            continue
        cutting = _extended(table, start, period, copies, offset)
        rank = cutting.total, -depth, -start
        if best is None or rank > best[0]:
            best = rank, cutting
    return best[1] if best else None


def _depends(table: NodeTable, start: int, offset: int, source: int) -> bool:
    """Whether what the copy at `start` makes depends on what it takes.

    Projections of one value, side by side, can be cut so that one value crosses, but nothing flows through.
    """
    pending = [start + offset]
    seen = set(pending)
    while pending:
        for feeder in table.arguments[pending.pop()].tolist():
            if feeder == source:
                return True
            if feeder >= start and feeder not in seen:
                seen.add(feeder)
                pending.append(feeder)
    return False


def _crossing(table: NodeTable, run: _Run) -> dict[int, int]:
    """For each cut within a run, the one value of the run that is used across it; cuts with more or none are absent."""
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
    opens, closes = made + 1, last_use[made] + 1
    count = np.zeros(length + 2, np.int64)
    total = np.zeros(length + 2, np.int64)
    np.add.at(count, opens, 1)
    np.add.at(count, closes, -1)
    np.add.at(total, opens, made)
    np.add.at(total, closes, -made)
    count, total = count.cumsum(), total.cumsum()
    # Where exactly one value crosses, the sum of the positions that cross is its position.
    return {int(cut) + start: int(total[cut]) + start for cut in np.flatnonzero(count[: length + 1] == 1)}


def _boundary_depth(table: NodeTable, cut: int) -> int:
    """How many module levels the nodes on both sides of a cut share."""
    before, after = table.path(cut - 1), table.path(cut)
    depth = 0
    while depth < min(len(before), len(after)) and before[depth] == after[depth]:
        depth += 1
    return depth


def _extended(table: NodeTable, start: int, period: int, copies: int, offset: int) -> _Cutting:
    """A cutting, with one more copy on the left where that copy differs only in where its input comes from."""
    entry = _entry(table, start, period, offset)
    first = None if entry is None or entry < 0 else _match_backwards(table, start, period, offset, entry)
    return _Cutting(start, period, copies, offset, first)


def _entry(table: NodeTable, start: int, period: int, offset: int) -> int | None:
    """What the first strict copy takes where later copies take the streamed value; None if it takes several values."""
    source = start + offset
    later = table.arguments[start + period : start + 2 * period]
    here = table.arguments[start : start + period]
    entries = np.unique(here[: len(later)][later == source])
    return int(entries[0]) if len(entries) == 1 else None


def _match_backwards(table: NodeTable, start: int, period: int, offset: int, entry: int) -> tuple[int, ...] | None:
    """Match the copy at `start`, from its output backwards, onto nodes that end in `entry`.

    The order of the nodes does not matter here, nor does what stands between them: T5's first layer computes the
    position bias that the others reuse.
    """
    image: dict[int, int] = {start + offset: entry}
    pending = [start + offset]
    streams: set[int] = set()
    while pending:
        pattern = pending.pop()
        found = image[pattern]
        if not 0 <= found < start or table.labels[found] != table.labels[pattern]:
            return None
        for ours, theirs in zip(table.arguments[pattern].tolist(), table.arguments[found].tolist(), strict=True):
            if ours >= start:
                if ours not in image:
                    pending.append(ours)
                if image.setdefault(ours, theirs) != theirs:
                    return None
            elif ours == entry:
                streams.add(theirs)
            elif ours != theirs:
                return None
    whole = range(start, start + period)
    if len(streams) != 1 or NONE in streams:
        return None
    (stream,) = streams
    for pattern in whole:
        # What the output does not depend on, such as a skip value that is made beside it.
        if pattern in image:
            continue
        wanted = [stream if v == entry else image.get(v, NONE) if v >= start else v for v in table.arguments[pattern]]
        alike = (table.labels[:start] == table.labels[pattern]) & (table.arguments[:start] == wanted).all(axis=1)
        unused = [found for found in np.flatnonzero(alike).tolist() if found not in image.values()]
        if not unused:
            return None
        image[pattern] = unused[0]
    if len(set(image.values())) != period:
        return None
    return tuple(image[p] for p in whole)


# --- nouns ----------------------------------------------------------------------------------------------------------


def _nouns(
    gm: fx.GraphModule, table: NodeTable, chosen: Iterable[tuple[_Cutting, list[_Cutting]]]
) -> tuple[Repeat, ...]:
    named = BlockNames(table)
    return tuple(
        _repeat(gm, table, cutting, named, tuple(_repeat(gm, table, child, named, ()) for child in inner))
        for cutting, inner in chosen
    )


def _repeat(
    gm: fx.GraphModule, table: NodeTable, cutting: _Cutting, named: BlockNames, children: tuple[Repeat, ...]
) -> Repeat:
    members = cutting.members.tolist()
    name, names = named.names(members)
    parameters = [tuple(p for i in copy for p in table.parameters[i]) for copy in members]
    # Tied tensors may go by several names.
    tensors = [[id(attribute(gm, path)) for path in paths] for paths in parameters]
    blocks: list[Block] = []
    for number, copy in enumerate(members):
        nodes = tuple(table.nodes[i] for i in copy)
        inside = set(nodes)
        output = nodes[cutting.streamed]
        given = blocks[-1].output if blocks else _first_input(table, members, cutting)
        feeders = dict.fromkeys(f for node in nodes for f in node.all_input_nodes if f not in inside and f is not given)
        blocks.append(
            Block(
                name=names[number],
                nodes=nodes,
                input=given,
                outputs=(output, *(n for n in nodes if n is not output and any(u not in inside for u in n.users))),
                side_inputs=tuple(f for f in feeders if f in table.index or f.op == "placeholder"),
                parameters=parameters[number],
                module_path=names[number] if named.is_module(names[number], inside) else None,
                size=int(table.sizes[copy].sum()),
            )
        )
    return Repeat(name, tuple(blocks), children, shared=bool(parameters[0]) and all(t == tensors[0] for t in tensors))


def _first_input(table: NodeTable, members: list[list[int]], cutting: _Cutting) -> fx.Node:
    """What the first copy takes where the second takes the first one's output."""
    streamed = members[0][cutting.streamed]
    for ours, theirs in zip(members[0], members[1], strict=True):
        for feeder, later in zip(_tensor_arguments(table, ours), _tensor_arguments(table, theirs), strict=True):
            if table.index.get(later) == streamed:
                return feeder
    raise AssertionError("the second copy does not use the first one's output")


def _tensor_arguments(table: NodeTable, position: int) -> list[fx.Node]:
    found: list[fx.Node] = []
    node = table.nodes[position]

    def visit(feeder: fx.Node) -> fx.Node:
        if feeder in table.index or feeder.op == "placeholder":
            found.append(feeder)
        return feeder

    fx.node.map_arg((node.args, node.kwargs), visit)
    return found

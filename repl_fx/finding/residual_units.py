r"""Residual units of a graph: an addition, the value both its sides come from, and what lies between.

fork ------------------------- add        identity shortcut
\- conv - norm - act - conv -/          main path

fork -- conv - norm ---------- add        projection shortcut, at the start of a stage
\- conv - norm - act - conv -/
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

from repl_fx.finding.node_table import NONE, NodeTable, passes_through
from repl_fx.graph.roles import ADDITIONS

# A shortcut is a projection at most: a pool, a convolution, a norm.
_SHORTCUT = 4
_LONGEST = 300
_LEFT, _RIGHT = 1, 2


@dataclass(frozen=True)
class Residual:
    """One residual unit, as positions in a node table.

    Attributes:
        fork: the value it starts from; below `NONE` for an input of the graph.
        main: the path with the weights, in program order.
        shortcut: the other path; empty where that is the fork itself.
        add: the addition.
    """

    fork: int
    main: tuple[int, ...]
    shortcut: tuple[int, ...]
    add: int

    @property
    def members(self) -> tuple[int, ...]:
        """All its nodes; main path and addition first."""
        return (*self.main, self.add, *self.shortcut)


def residuals(table: NodeTable) -> Iterator[Residual]:
    """The residual units of a graph, in the order of their additions; they may lie inside one another."""
    for position, node in enumerate(table.nodes):
        if node.target in ADDITIONS:
            row = [value for value in table.arguments[position].tolist() if value != NONE]
            if len(row) == 2 and row[0] != row[1]:
                found = _residual(table, position, *row)
                if found is not None:
                    yield found


def _residual(table: NodeTable, add: int, left: int, right: int) -> Residual | None:
    sides = {left: _LEFT, right: _RIGHT}
    # A walk of its own, as it ends at the fork: ancestors by networkx take 14 s for 1,600 units of 8,000 nodes, this
    # 0.06 s. (Dominators would not do: tables that others read come from elsewhere.)
    # Latest first: when a value is met, all its users behind it have been.
    pending = [-left, -right]
    heapq.heapify(pending)
    paths: dict[int, list[int]] = {_LEFT: [], _RIGHT: []}
    fork = None
    while pending:
        position = -heapq.heappop(pending)
        side = sides[position]
        if side == _LEFT | _RIGHT:
            fork = position
            break
        if position < 0:
            continue
        paths[side].append(position)
        if min(map(len, paths.values())) > _SHORTCUT or max(map(len, paths.values())) > _LONGEST:
            return None
        for feeder in table.arguments[position].tolist():
            if feeder == NONE:
                continue
            if feeder not in sides:
                sides[feeder] = side
                heapq.heappush(pending, -feeder)
            else:
                sides[feeder] |= side
    if fork is None:
        return None
    weights = {side: int(table.mixing[path].sum()) for side, path in paths.items()}
    heavy, light = (_LEFT, _RIGHT) if weights[_LEFT] > weights[_RIGHT] else (_RIGHT, _LEFT)
    if weights[heavy] == weights[light] or weights[light] > 1 or len(paths[light]) > _SHORTCUT:
        return None
    main, shortcut = _own(table, paths[heavy], fork, add), _own(table, paths[light], fork, add)
    if main is None or shortcut is None:
        return None
    return Residual(fork, main, shortcut, add)


def _own(table: NodeTable, path: list[int], fork: int, add: int) -> tuple[int, ...] | None:
    """The part of a path that belongs to the unit: not the tables that others read too. None where others read more."""
    streamed: set[int] = set()
    for position in sorted(path):
        if any(feeder == fork or feeder in streamed for feeder in table.arguments[position].tolist()):
            streamed.add(position)
    kept: set[int] = {add}
    for position in sorted(path, reverse=True):
        private = all(passes_through(u) or table.index.get(u) in kept for u in table.nodes[position].users)
        if position in streamed and not private:
            return None
        if private:
            kept.add(position)
    return tuple(sorted(kept - {add}))

"""Fit a linear map of the stream to the original: moments of its rows, and the map that is closest.

    original   … blocks.3 -> y                       y: what came out of the last block of the stretch
    rewritten  … x -> linear -> …                    x: what goes into the map now, behind what was fitted before

A merged map is of a part m of the stream alone: what it makes of m has to be m + y - x. Of a map with a stride only the
positions of x count that it reads. What is kept of the data is two
matrices of the size of the map, and a sample of rows where the objective is the cosine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from repl_fx.errors import BadInput
from repl_fx.fitting.cosine import Reservoir, solve_cosine
from repl_fx.fitting.norm_statistics import Distance
from repl_fx.fitting.solving import Moments, solve
from repl_fx.graph.roles import ADDITIONS, ANY_CONVOLUTION, STRIDE_ARGUMENT
from repl_fx.graph.state import parameter_count
from repl_fx.surrogates.linear import StreamMap

OBJECTIVES = ("least-squares", "cosine")


class MapFit:
    """Sums for the fit of a map.

    Args:
        gm: a rewritten graph.
        node: the call of the synthesis of the map.
        merged: whether the map is merged.
        objective: one of `OBJECTIVES`.

    Attributes:
        module: the map; of a merged one all values are seen with the identity in its place.
        given: the nodes whose values are needed.
        axis: that of the channels.
    """

    def __init__(self, gm: fx.GraphModule, node: fx.Node, merged: bool, objective: str) -> None:
        module = gm.get_submodule(str(node.target))
        assert isinstance(module, StreamMap)
        self.module = module
        self.given = self.stream, self.value = self.places(node, merged)
        self._merged = merged
        self.axis = 1 if module.spatial else -1
        if merged:
            # The value that goes into the map is the one that comes out of none.
            module.set_to(module.start, torch.zeros(module.widths[1]))
        product = self._product(node)
        # A scale of channels is no convolution.
        strides: Any = product.args[STRIDE_ARGUMENT] if product.target in ANY_CONVOLUTION else ()
        self._strides: tuple[int, ...] = tuple(strides)
        self._moments = Moments(*module.widths, module.shift.device)
        self._before = Distance(-1)
        self._rows = Reservoir() if objective == "cosine" else None

    @staticmethod
    def places(node: fx.Node, merged: bool) -> tuple[fx.Node, fx.Node]:
        """The nodes with the stream before the map, and with the part of it that is mapped."""
        product = MapFit._product(node)
        if merged:
            after = product
            while after.target not in ADDITIONS:
                # The value goes one way alone.
                (after,) = after.users
            return after, product
        stream = product.args[0]
        assert isinstance(stream, fx.Node)
        return stream, stream

    @staticmethod
    def _product(node: fx.Node) -> fx.Node:
        # The first result of the synthesis is its weight.
        return min(min(node.users).users)

    def add(self, values: Mapping[fx.Node, Any], wanted: Tensor) -> None:
        """Add a batch.

        Args:
            values: of the nodes `given`.
            wanted: the stream behind the stretch in the original.
        """
        given = (self._read(values[node]) for node in (self.stream, self.value))
        x, m, y = (v.movedim(1, -1) if self.module.spatial else v for v in (*given, wanted))
        m = m.reshape(x.shape)
        self._moments.add(m, m.double() + (y.double() - x) if self._merged else y)
        # A merged map begins as the identity too.
        self._before.add(x.double() @ self.module.start.to(x.device), y)
        if self._rows is not None:
            self._rows.add(m, y, *((x - m,) if self._merged else ()))

    def solve(self, ridge: float | None) -> dict[str, Any]:
        """Set the map; returns what is known of it, by the names of `FittedSurrogate`.

        Raises:
            BadInput: see `repl_fx.fitting.solving.solve`.
        """
        form, rank, around = self.module.form, self.module.rank, (self.module.start, self.module.beside)
        solution = solve(self._moments, form, rank, ridge, around=around)
        known: dict[str, Any] = {}
        if self._rows is not None:
            found = solve_cosine(self._rows, solution, form, rank, around)
            solution = found.solution
            known = {"objective": "cosine", "cosine_before": found.before, "cosine_after": found.after}
        self.module.set_to(solution.matrix, solution.shift)
        numbers = parameter_count(self.module)
        rows = {"numbers": numbers, "rows": self._moments.rows, "ridge": solution.ridge}
        return {**rows, "before": self._before.share, **known}

    def _read(self, value: Tensor) -> Tensor:
        """The positions of the stream that the map reads."""
        for dim, stride in enumerate(self._strides, 2):
            value = value[(slice(None),) * dim + (slice(None, None, stride),)]
        return value


def require_objective(objective: object) -> None:
    """Refuse an objective that there is not.

    Raises:
        BadInput: lists those that there are.
    """
    if objective not in OBJECTIVES:
        raise BadInput(f"objective is {objective!r}; it can be {' or '.join(OBJECTIVES)}")

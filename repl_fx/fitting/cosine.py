"""Linear maps of least cosine distance, on rows that were kept.

    minimise over D and b    mean of 1 - cos(s + m (F + D) + b, y) + ridge |F + D - E|² / C

s is 0 where nothing is merged; E and F are the identity mostly (see `repl_fx.fitting.solving`).

ReplaceMe's second objective (arXiv 2505.02819, section 3.1, the cosine distance of a linear map). Its map has no shift;
here there is one, as in the map of least squares, from which the solver starts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from repl_fx.fitting.solving import Solution

# Rows that are kept of each fit: a few for each channel of a large model.
MOST_ROWS = 16_384
_STEPS = 60


class Reservoir:
    """A sample of rows, each of all that came as likely as any other (Vitter's algorithm R, in batches).

    Which rows are kept depends on their number alone, and not on how they are cut into batches.

    Args:
        most: rows that are kept.

    Attributes:
        seen: how many rows came.
        rows: those that are kept, one tensor for each that was given.
    """

    def __init__(self, most: int = MOST_ROWS) -> None:
        self.most = most
        self.seen = 0
        self._generator = torch.Generator().manual_seed(0)
        self.rows: list[Tensor] = []

    def add(self, *columns: Tensor) -> None:
        """Add rows: tensors (…, C) that belong together."""
        columns = tuple(column.detach().flatten(0, -2) for column in columns)
        if not self.rows:
            kinds = (torch.promote_types(column.dtype, torch.float32) for column in columns)
            pairs = zip(columns, kinds, strict=True)
            self.rows = [column.new_empty(0, column.shape[1], dtype=kind) for column, kind in pairs]
        count = len(columns[0])
        room = min(self.most - len(self.rows[0]), count)
        self.rows = [torch.cat([kept, c[:room].to(kept)]) for kept, c in zip(self.rows, columns, strict=True)]
        # A later row n takes the place of a random one of n, if that is among those kept.
        drawn = torch.rand(count - room, generator=self._generator, dtype=torch.float64, device="cpu")
        place = (drawn * (self.seen + torch.arange(room, count) + 1)).long()
        latest = {int(p): n for n, p in enumerate(place.tolist(), room) if p < self.most}
        if latest:
            to, of = (torch.tensor(list(some), device=columns[0].device) for some in (latest.keys(), latest.values()))
            for kept, column in zip(self.rows, columns, strict=True):
                kept[to] = column[of].to(kept)
        self.seen += count


@dataclass(frozen=True, eq=False)
class CosineSolution:
    """A map of least cosine distance.

    Attributes:
        before, after: the mean cosine distance of the rows by the first map, and by this one.
    """

    solution: Solution
    before: float
    after: float


def solve_cosine(
    rows: Reservoir, start: Solution, form: str, rank: int | None, around: tuple[Tensor, Tensor] | None = None
) -> CosineSolution:
    """The map of a form from which the rows' cosine distance is least, near a first one.

    Args:
        rows: (m, y), or (m, y, s).
        start: the map of least squares, which stays where no other is closer.
        form, rank: see `repl_fx.surrogates.linear.LinearConfig`.
        around: E and F; the identity by default.
    """
    m, y, *rest = rows.rows
    beside = rest[0] if rest else 0.0

    def distance(matrix: Tensor, shift: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(beside + m @ matrix + shift, y, dim=-1).mean()

    identity = torch.eye(len(y[0])).to(m)
    drawn_to, part = (identity, identity) if around is None else (matrix.to(m) for matrix in around)
    numbers, matrix_of = _numbers(start.matrix.to(m), form, rank, part)
    shift = start.shift.to(m)
    # The solver views gradients as vectors.
    dense = (number.clone(memory_format=torch.contiguous_format) for number in (*numbers, shift))
    leaves = [number.requires_grad_() for number in dense]
    # By hundredths: the default tolerances are for losses that are not near zero.
    solver = torch.optim.LBFGS(
        leaves, max_iter=_STEPS, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        solver.zero_grad()
        matrix = matrix_of(*leaves[:-1])
        found = distance(matrix, leaves[-1]) + start.ridge * (matrix - drawn_to).square().sum() / len(identity)
        torch.autograd.backward(found)
        return found

    with torch.enable_grad():
        untyped: Callable[..., Tensor] = solver.step
        untyped(loss)
    with torch.no_grad():
        made = matrix_of(*leaves[:-1]).detach(), leaves[-1].detach()
        before = float(distance(start.matrix.to(m), start.shift.to(m)))
        after = float(distance(*made))
    if not after < before:
        return CosineSolution(start, before, before)
    return CosineSolution(Solution(made[0].double(), made[1].double(), start.ridge), before, after)


def _numbers(matrix: Tensor, form: str, rank: int | None, part: Tensor) -> tuple[list[Tensor], Callable[..., Tensor]]:
    """The numbers of a map of a form, and how they make its matrix with the part of it that is none of them."""
    if form == "scale":
        return [matrix.diagonal()], torch.diag
    if rank is None:
        return [matrix - part], lambda change: part + change
    left, sizes, right = torch.linalg.svd(matrix - part)
    root = sizes[:rank].sqrt()
    return [left[:, :rank] * root, root[:, None] * right[:rank]], lambda one, other: part + one @ other

"""Least squares from moments: numbers by their normal equations, and linear maps.

    minimise over theta    sum |e - F theta|² + ridge · sum over k of A_kk (theta_k - start_k)²        A = F^T F

A ridge is a share of a number's own square of influence, so it is the same whatever the scale of a feature. With a
ridge without end theta is where it starts. Of a map it is a share of the mean variance:

    minimise over D and b   mean |x (F + D) + b - y|² + ridge · s · |F + D - E|²   s: mean variance of a channel of x

    full       D = (S + ridge s I)^-1 (T + ridge s (E - F))     S, T: the covariances of x with x and y - x F
    rank r     D V V^T                            V: the first r eigenvectors of D^T (S + ridge s I) D
    scale      D diagonal: T_cc / (S_cc + ridge s)

in each case b = mean y - (mean x)(F + D). E is the map at the start, to which the ridge draws it: the identity, which
is the network without the block, or as much of it as there is between two widths. F is the part of the map that is no
number of its own: E, or nothing of one of rank r between other sizes. The map of rank r is the best of its rank
(reduced rank regression: Izenman, J. Multivariate Analysis 5, 1975).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from repl_fx.errors import BadInput

# Enough that rounding in single precision activations does not matter.
RIDGE = 1e-6
# With fewer rows than this for each number a fit follows the samples, and not the network.
ENOUGH = 4
RAISED = 1e-2
# Rows of a Gram matrix that are computed together.
_PANEL = 1024


def ridge_for(rows: int, numbers: int) -> float:
    """A ridge for a fit on so many rows: 0.01 where there are fewer than four for each number, else 1e-6."""
    return RAISED if rows < ENOUGH * numbers else RIDGE


def least_squares(
    matrix: Tensor,
    right: Tensor,
    ridge: float,
    start: Tensor | None = None,
    sizes: Tensor | None = None,
    *,
    of: str | None = None,
) -> Tensor:
    """Theta of the equations A theta = b, as large as b.

    Args:
        matrix: A, (p, p), in double precision.
        right: b, (p), or (p, C) where C outputs have the same features and numbers of their own.
        ridge: see the module.
        start: of the size of theta; zeros by default.
        sizes: of what the ridge is a share for each number, (p) or one for all; the diagonal of A by default.
        of: words for the equations in an error; how many numbers there are by default.

    Raises:
        BadInput: the ridge is too small for the equations to be solved.
    """
    left = right if start is None else right - matrix @ start
    sizes = matrix.diagonal() if sizes is None else sizes
    whole = matrix + (ridge * sizes).expand(len(matrix)).diag()
    drawn = whole.diagonal()
    # A feature that is always zero says nothing of its number, which stays.
    drawn[drawn <= 0] = 1
    scale = drawn.rsqrt()
    factor, failed = torch.linalg.cholesky_ex(scale[:, None] * whole * scale)
    if failed or not bool(factor.isfinite().all()):
        raise BadInput(f"ridge {ridge:g} is too small {of or f'to fit {len(scale)} numbers'}; give a larger one")
    columns = scale[:, None] * left.reshape(len(scale), -1)
    change = (scale[:, None] * torch.cholesky_solve(columns, factor)).reshape(left.shape)
    return change if start is None else start + change


class Gram:
    """The sum of x x^T over rows x that come batch by batch, (C, C), in double precision."""

    def __init__(self) -> None:
        # What is above the diagonal is the same, and half of the arithmetic.
        self._lower = torch.zeros(0)

    def add(self, rows: Tensor, weights: Tensor | None = None) -> None:
        """Add rows, (N, C), in double precision, each as often as its weight says, (N)."""
        size = rows.shape[1]
        if not len(self._lower):
            self._lower = rows.new_zeros(size, size)
        weighted = rows if weights is None else weights[:, None] * rows
        for begin in range(0, size, _PANEL):
            end = min(begin + _PANEL, size)
            # In place: a product of its own is written and read once more.
            self._lower[begin:end, :end].addmm_(weighted[:, begin:end].t(), rows[:, :end])

    def whole(self) -> Tensor:
        """The sum so far; it changes with the next rows."""
        return self._lower.tril_().add_(self._lower.tril(-1).t())


class Moments:
    """First and second moments of rows x and of rows y, in double precision.

    They take as much memory for any number of rows.

    Args:
        given, made: C and C', the lengths of rows x and y.
        device: where the rows come from, and where they are added up.

    Attributes:
        rows: N, how many rows there were.
    """

    def __init__(self, given: int, made: int, device: torch.device | str = "cpu") -> None:
        self.rows = 0
        # In single precision, sums over a million rows lose half of their digits.
        sizes = (given,), (made,), (given, made)
        self._x, self._y, self._xy = (torch.zeros(s, dtype=torch.float64, device=device) for s in sizes)
        self._xx = Gram()

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add rows, (…, C) and (…, C')."""
        x, y = (rows.detach().reshape(-1, rows.shape[-1]).to(self._x) for rows in (x, y))
        self.rows += len(x)
        self._x += x.sum(0)
        self._y += y.sum(0)
        self._xx.add(x)
        self._xy.addmm_(x.t(), y)

    @property
    def means(self) -> tuple[Tensor, Tensor]:
        """The means of x and of y, (C) and (C')."""
        return self._x / self.rows, self._y / self.rows

    @property
    def covariances(self) -> tuple[Tensor, Tensor]:
        """The covariances of x with x, (C, C), and of x with y, (C, C')."""
        x, y = self.means
        return self._xx.whole() / self.rows - torch.outer(x, x), self._xy / self.rows - torch.outer(x, y)


@dataclass(frozen=True, eq=False)
class Solution:
    """A fitted map x -> x @ matrix + shift.

    Attributes:
        matrix: (C, C'), shift: (C'), in double precision.
        ridge: the one that was used, as a fraction of the mean variance.
    """

    matrix: Tensor
    shift: Tensor
    ridge: float


def solve(
    moments: Moments, form: str, rank: int | None, ridge: float | None, *, around: tuple[Tensor, Tensor] | None = None
) -> Solution:
    """The map of a form that is closest by least squares.

    Args:
        moments: of what goes into the map, and of what should come out.
        form, rank: see `repl_fx.surrogates.linear.LinearConfig`.
        ridge: as a fraction of the mean variance; None to choose it: 1e-6, or 0.01 where a full map has fewer than four
            rows for each channel.
        around: E and F, (C, C'); the identity by default.

    Raises:
        BadInput: nothing varies, or the ridge is too small for the equations to be solved.
    """
    xx, xy = moments.covariances
    channels = len(xx)
    if ridge is None:
        ridge = ridge_for(moments.rows, channels) if form == "full" else RIDGE
    size = xx.diagonal().mean()
    if not size > 0:
        raise BadInput("the values that go into the map are the same in all samples; calibrate on others")
    identity = torch.eye(channels, dtype=xx.dtype, device=xx.device)
    start, beside = (identity, identity) if around is None else (matrix.to(xx) for matrix in around)
    given, wanted = xx, xy - xx @ beside
    if form == "scale":
        # The channels have nothing to do with each other.
        given, wanted = (all_pairs.diagonal().diag() for all_pairs in (given, wanted))
    of = f"for {moments.rows} rows of {channels} channels"
    change = least_squares(given, wanted, ridge, start - beside, size, of=of)
    if rank is not None:
        _, vectors = torch.linalg.eigh(change.t() @ (xx + ridge * size * identity) @ change)
        best = vectors[:, -rank:]
        change = change @ best @ best.t()
    x, y = moments.means
    matrix = beside + change
    return Solution(matrix, y - x @ matrix, ridge)

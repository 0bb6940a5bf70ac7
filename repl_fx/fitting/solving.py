"""Linear maps of least squares, from moments.

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
from repl_fx.fitting.moments import Moments

# Of the mean variance: enough that rounding in single precision activations does not matter.
RIDGE = 1e-6
# With fewer rows than this for each channel a full map follows the samples, and not the network.
_ENOUGH = 4
_RAISED = 1e-2


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
    xx, xy, _ = moments.covariances
    channels = len(xx)
    if ridge is None:
        ridge = _RAISED if form == "full" and moments.rows < _ENOUGH * channels else RIDGE
    size = xx.diagonal().mean()
    if not size > 0:
        raise BadInput("the values that go into the map are the same in all samples; calibrate on others")
    identity = torch.eye(channels, dtype=xx.dtype, device=xx.device)
    start, beside = (identity, identity) if around is None else (matrix.to(xx) for matrix in around)
    toward = xy - xx @ beside + ridge * size * (start - beside)
    if form == "scale":
        gains = toward.diagonal() / (xx.diagonal() + ridge * size)
        change = gains.diag()
    else:
        regular = xx + ridge * size * identity
        factor, failed = torch.linalg.cholesky_ex(regular)
        if failed:
            raise BadInput(
                f"ridge {ridge:g} is too small for {moments.rows} rows of {channels} channels; give a larger one"
            )
        change = torch.cholesky_solve(toward, factor)
        if rank is not None:
            _, vectors = torch.linalg.eigh(change.t() @ regular @ change)
            best = vectors[:, -rank:]
            change = change @ best @ best.t()
    x, y = moments.means
    matrix = beside + change
    return Solution(matrix, y - x @ matrix, ridge)

"""Normal equations of least squares, drawn to where the numbers start.

    minimise over theta    sum |e - F theta|² + ridge · sum over k of A_kk (theta_k - start_k)²        A = F^T F

A ridge is a share of a number's own square of influence, so it is the same whatever the scale of a feature. With a
ridge without end theta is where it starts.
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


@dataclass(frozen=True, eq=False)
class Equations:
    """A theta = b.

    Attributes:
        matrix: A, (p, p), in double precision.
        right: b, (p), or (p, C) where C outputs have the same features and numbers of their own.
    """

    matrix: Tensor
    right: Tensor

    def solve(self, ridge: float, start: Tensor | None = None) -> Tensor:
        """Theta, as large as the right side.

        Args:
            ridge: see the module.
            start: of the size of theta; zeros by default.

        Raises:
            BadInput: the ridge is too small for the equations to be solved.
        """
        right = self.right if start is None else self.right - self.matrix @ start
        size = self.matrix.diagonal()
        # A feature that is always zero says nothing of its number, which stays.
        scale = torch.where(size > 0, size, 1).rsqrt()
        regular = scale[:, None] * self.matrix * scale + ridge * torch.eye(len(scale)).to(scale)
        regular.diagonal()[size <= 0] = 1
        factor, failed = torch.linalg.cholesky_ex(regular)
        if failed or not bool(factor.isfinite().all()):
            raise BadInput(f"ridge {ridge:g} is too small to fit {len(scale)} numbers; give a larger one")
        columns = right.reshape(len(scale), -1)
        change = (scale[:, None] * torch.cholesky_solve(scale[:, None] * columns, factor)).reshape(right.shape)
        return change if start is None else start + change


def ridge_for(rows: int, numbers: int) -> float:
    """A ridge for a fit on so many rows: 0.01 where there are fewer than four for each number, else 1e-6."""
    return RAISED if rows < ENOUGH * numbers else RIDGE

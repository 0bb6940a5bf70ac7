"""Sums over pairs of rows from which linear maps are fitted; they take as much memory for any number of rows."""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """First and second moments of rows x and of rows y, in double precision.

    Args:
        channels: C and C', the lengths of rows x and y; one number where they are the same.
        device: where the rows come from, and where they are added up.

    Attributes:
        rows: N, how many rows there were.
    """

    def __init__(self, channels: int | tuple[int, int], device: torch.device | str = "cpu") -> None:
        self.rows = 0
        given, made = (channels, channels) if isinstance(channels, int) else channels
        # In single precision, sums over a million rows lose half of their digits.
        self._x, self._xx = _zeros(device, given), _zeros(device, given, given)
        self._y, self._yy, self._whole, self._wholes = (_zeros(device, made) for _ in range(4))
        self._xy = _zeros(device, given, made)

    def add(self, x: Tensor, y: Tensor, whole: Tensor | None = None) -> None:
        """Add rows.

        Args:
            x, y: (…, C) and (…, C').
            whole: the rows by whose variance distances are measured, where y is a part of them; y by default.
        """
        whole = y if whole is None else whole
        x, y, whole = (rows.detach().reshape(-1, rows.shape[-1]).to(self._x) for rows in (x, y, whole))
        self.rows += len(x)
        self._x += x.sum(0)
        self._y += y.sum(0)
        self._xx += x.t() @ x
        self._xy += x.t() @ y
        self._yy += y.square().sum(0)
        self._whole += whole.sum(0)
        self._wholes += whole.square().sum(0)

    @property
    def means(self) -> tuple[Tensor, Tensor]:
        """The means of x and of y, (C) and (C')."""
        return self._x / self.rows, self._y / self.rows

    @property
    def covariances(self) -> tuple[Tensor, Tensor, Tensor]:
        """The covariances of x with x, (C, C), and of x with y, (C, C'), and the variances of y, (C')."""
        x, y = self.means
        return (
            self._xx / self.rows - torch.outer(x, x),
            self._xy / self.rows - torch.outer(x, y),
            self._yy / self.rows - y.square(),
        )

    def left_over(self, matrix: Tensor, shift: Tensor) -> float:
        """The mean squared distance of x @ matrix + shift from y, by the variance of the whole; all channels together.

        Args:
            matrix: (C, C').
            shift: (C').
        """
        matrix, shift = matrix.to(self._x), shift.to(self._x)
        (x, y), (xx, xy, yy) = self.means, self.covariances
        apart = x @ matrix + shift - y
        spread = yy.sum() - 2 * (matrix * xy).sum() + (matrix * (xx @ matrix)).sum()
        variance = self._wholes / self.rows - (self._whole / self.rows).square()
        return float((spread + apart.square().sum()) / variance.sum())


def _zeros(device: torch.device | str, *sizes: int) -> Tensor:
    return torch.zeros(sizes, dtype=torch.float64, device=device)

"""Choose the hidden units that stay, from moments of all of them, and say the others by these.

    h          the units (n), with a one behind them where the layer behind has a bias
    W          the weights that read them, (m, n)
    choose     S so that |W h - V h_S|² is least for the best V: one after the other, each that which lessens it most
    V          W h = V h_S by least squares, with a shift where the layer behind has a bias

A unit taken in lessens the distance by |W R e_k|² / R_kk with R the moments of what the units taken before do not say,
and R loses the part of it: orthogonal least squares (Chen, Billings and Luo, Int. J. Control 50, 1989). Of many units
several are taken in at once. Where units go by whole groups g (of a group norm), the group lessens the distance by
tr(W R_g (R_gg)^-1 R_g^T W^T).
"""

from __future__ import annotations

import torch
from torch import Tensor

from repl_fx.fitting.solving import Gram, least_squares, ridge_for
from repl_fx.surrogates.shared.cut_layers import StayingUnits, whole_groups

# Steps at most in which units are taken in.
STEPS = 512
# Steps of many units after which the moments are brought up to date: they are the largest matrix, and all of it is read
# and written then.
_OWED = 16
# Of its own moment, below which nothing new is left of a unit.
_NOTHING = 1e-9


class UnitMoments:
    """Second moments of hidden units and of a one, in double precision.

    Attributes:
        rows: how many positions there were.
    """

    def __init__(self) -> None:
        self.rows, self._sums = 0, Gram()

    def add(self, value: Tensor, axis: int) -> None:
        """Add the units' values, along an axis."""
        rows = value.detach().movedim(axis, -1).flatten(0, -2).to(torch.float64)
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
        self.rows += len(rows)
        self._sums.add(rows)

    def choose(self, readers: Tensor, count: int, *, shifted: bool, group: int = 1) -> StayingUnits:
        """The units that stay, and the weights that read them.

        Args:
            readers: W, (m, n).
            count: how many stay.
            shifted: whether the layers behind can take a shift.
            group: how many in a row stay or go together.
        """
        every = self._sums.whole()
        size = len(every) - 1
        moments = every if shifted else every[:size, :size]
        readers = readers.to(moments)
        read = moments[:, :size] @ readers.t()
        # As many columns as units have all of what the layers read.
        said = read @ torch.linalg.qr(readers).Q if len(readers) > size else read.clone()
        units = _taken(moments, said, count, shifted, group).sort().values
        known = torch.cat([units, units.new_tensor([size])]) if shifted else units
        again = least_squares(moments[known][:, known], read[known], ridge_for(self.rows, count)).t()
        return StayingUnits(units, again[:, :count], again[:, count] if shifted else None)


def _taken(moments: Tensor, said: Tensor, count: int, shifted: bool, group: int) -> Tensor:
    """The numbers of the units, in the order in which they are taken in; `said` is R W^T, with a row for each unit."""
    size, left = len(moments) - shifted, moments.clone()
    least = _NOTHING * moments.diagonal()[:size].clamp_min(torch.finfo(moments.dtype).tiny)
    open_ = torch.ones(size, dtype=torch.bool, device=moments.device)
    taken: list[Tensor] = []
    # Of groups in a step.
    each = max(1, -(-count // (STEPS * group)))
    # What `left` is yet to lose: the product of two thin matrices for each step.
    owed: list[tuple[Tensor, Tensor]] = []
    new = left.diagonal()[:size].clone()

    def take(which: Tensor) -> None:
        rows = left[which]
        for past, part in owed:
            rows.addmm_(past[:, which].t(), part, alpha=-1)
        block = rows[:, which]
        block = block + _NOTHING * block.diagonal().mean() * torch.eye(len(which)).to(block)
        part = torch.linalg.solve(block, rows)
        said.addmm_(part.t(), said[which], alpha=-1)
        new.sub_((rows * part).sum(0)[:size])
        owed.append((rows, part))
        if len(owed) >= (_OWED if each > 1 and group == 1 else 1):
            # In place: of thousands of units a copy takes longer than the product.
            left.addmm_(torch.cat([one for one, _ in owed]).t(), torch.cat([one for _, one in owed]), alpha=-1)
            new.copy_(left.diagonal()[:size])
            owed.clear()

    if shifted:
        take(torch.tensor([size], device=moments.device))
    while (missing := count // group - len(taken) * each) > 0:
        if group == 1:
            worth = torch.linalg.vector_norm(said[:size], dim=1).square() / new.clamp_min(least)
        else:
            worth = _worth_of_groups(left[:size, :size], said[:size], least, group)
        # One of which nothing is left tells nothing; where all are so, any will do.
        something = (new > least).view(-1, group).any(1)
        worth = torch.where(something, worth, 0).masked_fill(~open_[::group], -1)
        which = whole_groups(worth.topk(min(each, missing)).indices, group)
        open_[which] = False
        taken.append(which)
        if bool((new[which] > least[which]).view(-1, group).any(1).all()):
            take(which)
    return torch.cat(taken)


def _worth_of_groups(left: Tensor, said: Tensor, least: Tensor, group: int) -> Tensor:
    """By how much each group lessens the distance: what of its moments is left, and what all that it has left says."""
    size, count = len(left), len(left) // group
    own = left.view(count, group, count, group).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    # A unit of which nothing is left tells nothing.
    own = own + torch.diag_embed(least.view(count, group).clamp_min(torch.finfo(left.dtype).tiny))
    said = said.reshape(count, group, -1)
    assert size == count * group
    worth: Tensor = (torch.linalg.solve(own, said) * said).sum((1, 2))
    return worth

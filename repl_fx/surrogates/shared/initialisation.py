"""Initialisation of the parameters that a surrogate learns."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def random_values(like: Tensor, *sizes: int) -> nn.Parameter:
    """Standard normal values of the dtype and device of `like`, the same on every device for the same seed."""
    if like.is_meta:
        return nn.Parameter(torch.empty(sizes, dtype=like.dtype, device="meta"))
    return nn.Parameter(torch.randn(sizes).to(like))


def length(pieces: Sequence[Tensor]) -> float:
    """The Frobenius norm of several tensors together, in at least single precision."""
    kind = torch.promote_types(pieces[0].dtype, torch.float32)
    return math.hypot(*(float(torch.linalg.vector_norm(piece.detach(), dtype=kind)) for piece in pieces))


def ratio(wanted: float, found: float) -> float:
    """The factor of a weight's length; 1 where weights start at zero and have no length to match."""
    return wanted / found if wanted > 0 and found > 0 else 1.0

"""Activations: modules of the user's are asked whether they are one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repl_fx.surrogates.shared.activations import _is_elementwise_nonlinearity


class Own(nn.Module):
    """A module of the user's without parameters."""

    def __init__(self, function: Callable[[Tensor, bool], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.training)


def _only_nine(x: Tensor, training: bool) -> Tensor:
    if x.numel() != 9:
        raise ValueError("nine numbers are wanted")
    return x.relu()


@pytest.mark.parametrize(
    ("function", "is_one"),
    [
        (lambda x, training: x * x.sigmoid(), True),
        (lambda x, training: x.clamp(-1, 1), True),
        # Its curve bends by less than what a linear function's rounding could.
        (lambda x, training: x + 1e-6 * x.square(), False),
        (lambda x, training: 2 * x + 1, False),
        (lambda x, training: x.softmax(-1), False),
        (lambda x, training: F.dropout(x.relu(), 0.5, training), False),
        (lambda x, training: x.relu()[..., :4], False),
        (_only_nine, False),
        (lambda x, training: F.local_response_norm(x, 5, alpha=1.0), False),
    ],
    ids=["swish", "clamp", "nearly linear", "linear", "softmax", "dropout", "narrowed", "picky", "channels"],
)
def test_what_is_an_activation(function: Callable[[Tensor, bool], Tensor], is_one: bool) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert _is_elementwise_nonlinearity(Own(function)) is is_one
    assert torch.equal(torch.get_rng_state(), before)

"""The weights of a block at a fraction of its width."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from repl_fx.surrogates.shared.thin_block import SlimSynthesis, WeightCut, slim_weights

CUTS = (
    WeightCut(3, 2, transposed=False, bias=True, zero_init=False),
    WeightCut(2, 4, transposed=True, bias=False, zero_init=False),
    WeightCut(3, 2, transposed=False, bias=False, zero_init=True),
)


def _weights() -> list[Tensor]:
    shapes = ((6, 4, 3, 3), (6, 5), (6, 4, 1, 1))
    return [torch.randn(shape, dtype=torch.float64) * 3 for shape in shapes]


def test_weights_are_the_formula_of_the_docstring() -> None:
    own, before, after = _weights(), _weights(), _weights()
    given = [weight for pair in zip(before, after, strict=True) for weight in pair]
    synthesis = SlimSynthesis(CUTS, given, own, train_neighbours=True)
    made = dict(zip(synthesis.names, synthesis(*given), strict=True))
    assert list(made) == ["weight_0", "weight_1", "weight_2", "bias_0"]
    assert made["weight_2"].abs().max() == 0
    for parameter in synthesis.parameters():
        nn.init.normal_(parameter)
    made = dict(zip(synthesis.names, synthesis(*given), strict=True))
    for i, (a, b) in enumerate(zip(before, after, strict=True)):
        gains = synthesis.get_parameter(f"gain_{i}").reshape(2, -1)
        if CUTS[i].transposed:
            a, b = a.t(), b.t()
        rows, columns = CUTS[i].rows, CUTS[i].columns
        shape = (rows, *[1] * (a.ndim - 1))
        wanted = sum(g.reshape(shape) * w[:rows, :columns] for g, w in zip(gains, (a, b), strict=True))
        torch.testing.assert_close(made[f"weight_{i}"], wanted)


@pytest.mark.parametrize("control", [False, True])
def test_rows_are_as_long_as_those_they_stand_for(control: bool) -> None:
    own, given = _weights(), [weight for one in _weights() for weight in (one, torch.randn_like(one))]
    made = slim_weights(CUTS, own)() if control else SlimSynthesis(CUTS, given, own, train_neighbours=True)(*given)
    for i in range(2):
        removed = own[i].t() if CUTS[i].transposed else own[i]
        lengths = [weight.flatten(1).norm(dim=1).square().mean().sqrt().item() for weight in (made[i], removed)]
        assert lengths[0] == pytest.approx(lengths[1])


def test_gradients_are_right_and_stop_where_neighbours_are_not_trained() -> None:
    given = [weight.requires_grad_() for one in _weights() for weight in (one, one.clone())]
    trained, fixed = (SlimSynthesis(CUTS, given, given[::2], train_neighbours=train) for train in (True, False))
    for synthesis in (trained, fixed):
        for parameter in synthesis.parameters():
            nn.init.normal_(parameter)
    assert torch.autograd.gradcheck(lambda *w: trained(*w), given)
    torch.autograd.backward([made.sum() for made in fixed(*given)])
    assert all(weight.grad is None for weight in given) and fixed.get_parameter("gain_0").grad is not None

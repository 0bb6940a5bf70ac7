"""Kept blocks of a model in place are computed again in the backward pass."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.costs.counted import measure_costs
from tests.nets import RawNet, TokenNet

X = torch.randn(2, 6, 16)


def _gradients(model: nn.Module) -> list[Tensor]:
    model.train()
    model.zero_grad()
    torch.manual_seed(0)
    torch.autograd.backward(model(X).square().mean())
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def _kept(model: nn.Module) -> int:
    kept = measure_costs(model, (X,)).activation_bytes
    assert kept is not None
    return kept


@pytest.mark.slow
@pytest.mark.parametrize("surrogate", ["reuse", "blend"])
def test_less_is_kept_and_gradients_are_the_same(surrogate: str, tmp_path: Path) -> None:
    model = TokenNet(depth=5, dropout=0.1)
    plain = repl_fx.transform(model, (X,), surrogate=surrogate)
    again = repl_fx.transform(model, (X,), plan=plain.plan, checkpoint_blocks=True)
    again.module.load_state_dict(plain.module.state_dict())
    expected = _gradients(plain.model)
    assert all(torch.equal(a, b) for a, b in zip(_gradients(again.model), expected, strict=True))
    assert _kept(again.model) < 0.7 * _kept(plain.model)
    loaded: Any = pickle.loads(pickle.dumps(again.model))
    assert all(torch.equal(a, b) for a, b in zip(_gradients(loaded), expected, strict=True))
    repl_fx.save(again.model, tmp_path / "out")
    assert _kept(repl_fx.load(tmp_path / "out", TokenNet(depth=5, dropout=0.1))) == _kept(again.model)


def test_a_model_without_places_is_refused() -> None:
    with pytest.raises(repl_fx.BadInput, match="checkpoint_blocks needs the model in place, which is refused: "):
        repl_fx.transform(RawNet(), (torch.randn(4, 8),), surrogate="blend", checkpoint_blocks=True)

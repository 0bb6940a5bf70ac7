"""Compression of a trained model in Python, from batches to a smaller model."""

from __future__ import annotations

from collections.abc import Iterator
from html import unescape

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import repl_fx
from tests.nets import MlpNet, TokenNet


def _batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(16, 5, 8, generator=generator) for _ in range(4)]


def _error(original: nn.Module, batches: list[Tensor], model: nn.Module) -> dict[str, float]:
    assert not model.training and not torch.is_grad_enabled()
    return {"error": sum(float(F.mse_loss(model(x), original(x))) for x in batches)}


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return MlpNet(4, 8).eval()


@pytest.mark.slow
def test_a_model_is_cut_to_a_budget_and_fitted(net: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    batches = _batches()
    done = repl_fx.compress(net, batches, budget={"params": 0.8}, evaluate=lambda model: _error(net, batches, model))
    assert type(done.model) is MlpNet
    share = sum(p.numel() for p in done.model.parameters()) / sum(p.numel() for p in net.parameters())
    assert done.budget["params"]["reached"] == pytest.approx(share) and share <= 0.8
    assert done.fit is not None and any(one.rows for one in done.fit.surrogates) and len(done.scores.blocks) == 4
    # Nearer to the original than without what stands in.
    pruned = repl_fx.transform(net, (batches[0],), plan=done.result.plan.without_surrogates()).model.eval()
    with torch.no_grad():
        assert 0 < done.figures["cut"]["error"] < _error(net, batches, pruned)["error"]
    assert done.figures["original"] == {"error": 0}
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    own = {id(tensor) for tensor in net.parameters()}
    assert not any(id(tensor) in own for tensor in done.model.parameters())


def test_the_outcome_shows_itself(net: nn.Module) -> None:
    batches = _batches()
    done = repl_fx.compress(net, batches, budget={"params": 0.8}, surrogate="linear", evaluate=lambda model: 1.5)
    assert repr(done).startswith("MlpNet\n\nBudget, of the original\n") and "weight" not in repr(done)
    assert "cut: figure 1.5000" in str(done) and "-> linear" in str(done)
    shown = done._repr_html_()
    assert "Budget, of the original" in shown and "Figures" in shown and "Blocks" in shown
    for one in (done.result.plan, done.scores, done.fit, done.result.repeats[0]):
        assert one is not None and str(one).splitlines()[0][:20] in unescape(one._repr_html_())


@pytest.mark.slow
def test_scores_by_the_loss_take_pairs(net: nn.Module) -> None:
    pairs = [(x, torch.zeros(len(x), dtype=torch.int64)) for x in _batches()]
    done = repl_fx.compress(net, pairs, budget={"flops": 0.8}, loss=F.cross_entropy, score="loss")
    assert done.scores.of("loss") and done.fit is not None and done.figures == {}


@pytest.mark.slow
def test_inputs_by_name_and_several_passes() -> None:
    torch.manual_seed(0)
    model = TokenNet(depth=3).eval()
    passes: list[int] = []

    def batches() -> Iterator[dict[str, Tensor]]:
        passes.append(1)
        yield from ({"x": torch.randn(8, 6, 16, generator=torch.Generator().manual_seed(i))} for i in range(2))

    done = repl_fx.compress(model, batches, budget={"flops": 0.9})
    assert len(passes) > 2 and (done.budget["flops"]["reached"] or 1) <= 0.9


def test_what_cannot_be_is_a_line(net: nn.Module) -> None:
    with pytest.raises(repl_fx.BadInput, match="compress needs a budget"):
        repl_fx.compress(net, _batches(), budget={})
    with pytest.raises(repl_fx.BadInput, match="batches can be gone through once"):
        repl_fx.compress(net, iter(_batches()), budget={"params": 0.8})
    with pytest.raises(repl_fx.BadInput, match="evaluate returned a str; return a number"):
        repl_fx.compress(net, _batches(), budget={"params": 0.8}, evaluate=lambda model: "good")  # type: ignore[arg-type, return-value]
    with pytest.raises(repl_fx.BadInput, match="no plan"):
        repl_fx.compress(net, _batches(), budget={"params": 0.01})
    with pytest.raises(repl_fx.NothingToReplace, match="no repeated blocks were found"):
        repl_fx.compress(nn.Linear(4, 4), [(torch.randn(8, 4),)], budget={"params": 0.8})

"""Neighbours of replaced blocks that are frozen, or get no gradient from surrogates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.errors import BadInput
from repl_fx.training.neighbours import neighbours_of, treated
from tests.nets import TokenNet
from tests.training.runs import Net

PICTURES, TOKENS = torch.randn(2, 1, 4, 4), torch.randn(2, 6, 16)


def _result(surrogate: str = "blend", **settings: Any) -> repl_fx.TransformResult:
    torch.manual_seed(0)
    return repl_fx.transform(Net(), (PICTURES,), surrogate=surrogate, settings=settings)


def _gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model.eval()(x).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _moved(model: nn.Module) -> None:
    """Away from surrogates that begin silent."""
    for name, parameter in model.named_parameters():
        if "surrogate" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)


def test_frozen_neighbours_have_no_gradient_and_surrogates_have() -> None:
    result = _result()
    names = neighbours_of(result)
    assert {name.split(".")[1] for name in names} == {"0", "2"} and "blocks.0.norm.bias" in names
    result.model.get_parameter("blocks.0.norm.bias").requires_grad_(False)
    with treated(result.model, result, "freeze"):
        found = _gradients(result.model, PICTURES)
    assert found.keys().isdisjoint(names) and any(".surrogate." in name for name in found) and "stem.weight" in found
    # What the user has frozen stays so, and all else trains again.
    trains = {name for name, parameter in result.model.named_parameters() if parameter.requires_grad}
    assert {name for name, _ in result.model.named_parameters()} - trains == {"blocks.0.norm.bias"}


@pytest.mark.parametrize("surrogate", ["blend", "bottleneck", "reuse"])
@pytest.mark.parametrize("graph", [False, True])
def test_detached_neighbours_have_their_own_gradients_alone(surrogate: str, graph: bool) -> None:
    torch.manual_seed(0)
    result = repl_fx.transform(TokenNet(depth=3), (TOKENS,), surrogate=surrogate)
    model = result.module if graph else result.model
    _moved(model)
    both = _gradients(model, TOKENS)
    with treated(model, result, "detach"):
        detached = _gradients(model, TOKENS)
    # The same network whose surrogates have weights that are constants: no gradient but the block's own.
    behind = {name for name in both if name.startswith("blocks.2.")}
    changed = {name for name in both if not torch.equal(both[name], detached[name])}
    assert changed and all(name.startswith(("blocks.0.", "blocks.2.")) for name in changed)
    settings = {"train_neighbours": False}
    torch.manual_seed(0)
    constant = repl_fx.transform(TokenNet(depth=3), (TOKENS,), surrogate=surrogate, settings=settings)
    other = constant.module if graph else constant.model
    other.load_state_dict(model.state_dict())
    expected = _gradients(other, TOKENS)
    assert behind and all(torch.equal(expected[name], detached[name]) for name in expected)
    assert all(torch.equal(both[name], again) for name, again in _gradients(model, TOKENS).items())


def test_what_cannot_be_is_a_line() -> None:
    bare = _result("identity")
    reason = "detach is for surrogates made from neighbours' weights; here is none"
    with pytest.raises(BadInput, match=reason), treated(bare.model, bare, "detach"):
        pass
    alone = _result("narrow")
    reason = "freeze is for surrogates between kept blocks; here is none"
    with pytest.raises(BadInput, match=reason), treated(alone.model, alone, "freeze"):
        pass
    for module in (bare.model.stem, bare.model.head):
        assert isinstance(module, nn.Module)
        module.requires_grad_(False)
    nothing = "neighbours=freeze leaves nothing to train"
    with pytest.raises(BadInput, match=nothing), treated(bare.model, bare, "freeze"):
        pass


@pytest.mark.parametrize("graph", [False, True])
def test_surrogates_learn_alone(graph: bool) -> None:
    result = _result()
    model = result.module if graph else result.model
    with treated(model, result, "train", "surrogates"):
        found = _gradients(model, PICTURES)
    own = {name for name, _ in result.captured_parts.source.named_parameters()}
    assert found and found.keys().isdisjoint(own) and all("surrogate" in name for name in found)
    assert all(parameter.requires_grad for parameter in model.parameters())
    nothing = _result("identity")
    refused = pytest.raises(BadInput, match="learn=surrogates leaves nothing to train: no surrogate has parameters")
    with refused, treated(nothing.model, nothing, "train", "surrogates"):
        pass

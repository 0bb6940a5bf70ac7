"""`linear`: one linear map of the stream in place of a block, the identity before it is fitted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.passes.fold_surrogates import is_synthesis
from repl_fx.plan import Refusal
from repl_fx.surrogates import make_surrogate
from repl_fx.surrogates.linear import StreamMap
from tests.captures import transformed
from tests.nets import TokenNet
from tests.sites import layer_site

X, PICTURES = torch.randn(2, 6, 16), torch.randn(2, 8, 5, 5)
FORMS: list[dict[str, Any]] = [{}, {"rank": 3}, {"form": "scale"}]


class _Residual(nn.Module):
    """Two convolutions around an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x).relu())  # type: ignore[no-any-return]


def _tokens() -> tuple[nn.Module, Tensor]:
    return TokenNet(depth=5), X


def _pictures() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(*(_Residual() for _ in range(5))), PICTURES


def _maps(result: repl_fx.TransformResult) -> list[StreamMap]:
    return [module for module in result.module.modules() if isinstance(module, StreamMap)]


@pytest.mark.parametrize("make", [_tokens, _pictures])
@pytest.mark.parametrize("settings", FORMS)
def test_the_map_begins_as_the_identity_and_becomes_what_it_is_set_to(make: Any, settings: dict[str, Any]) -> None:
    net, x = make()
    result = transformed(net, (x,), surrogate="linear", blocks=[3], settings=settings)
    pruned = transformed(net, (x,), surrogate="identity", blocks=[3])
    assert torch.equal(result.graph_module.eval()(x), pruned.graph_module.eval()(x))
    assert torch.equal(result.model.eval()(x), pruned.graph_module(x))
    axis = 1 if x.ndim == 4 else -1
    channels = x.shape[axis]
    matrix, shift = _matrix(settings, channels), torch.randn(channels)
    (found,) = _maps(result)
    found.set_to(matrix, shift)
    # The middle block is the map: what goes in and out of it is read off the blocks around it.
    seen: dict[str, Tensor] = {}
    blocks: Any = result.model.blocks if isinstance(net, TokenNet) else result.model
    for name, block in (("in", blocks[1]), ("out", blocks[2])):
        block.register_forward_hook(lambda module, given, made, name=name: seen.update({name: made}))
    made = result.model(x)
    expected = torch.movedim(torch.movedim(seen["in"], axis, -1) @ matrix + shift, -1, axis)
    torch.testing.assert_close(seen["out"], expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(made, result.graph_module(x))
    folded = repl_fx.fold(result.graph_module)
    assert not any(is_synthesis(folded, node) for node in folded.graph.nodes)
    torch.testing.assert_close(folded(x), made, rtol=1e-5, atol=1e-5)


def _matrix(settings: dict[str, Any], channels: int) -> Tensor:
    """A map that the form can express."""
    if settings.get("form") == "scale":
        return torch.randn(channels).diag()
    rank = settings.get("rank", channels)
    return torch.eye(channels) + torch.randn(channels, rank) @ torch.randn(rank, channels) / channels


@pytest.mark.parametrize("settings", FORMS)
def test_a_map_learns_from_the_start(settings: dict[str, Any]) -> None:
    net, x = _tokens()
    result = transformed(net, (x,), surrogate="linear", blocks=[3], settings=settings)
    torch.autograd.backward(result.model(x).square().mean())
    gradients = [p.grad for p in _maps(result)[0].parameters() if p.grad is not None]
    assert any(gradient.abs().max() > 0 for gradient in gradients)


def test_one_map_stands_for_a_stretch() -> None:
    result = transformed(TokenNet(depth=6), (X,), surrogate="linear", blocks=[2, 4, 5])
    kinds = {one.block: (one.surrogate, one.why) for one in result.plan.replacements}
    assert kinds == {
        "blocks.1": ("linear", ""),
        "blocks.3": ("identity", "blocks.4 stands for it too"),
        "blocks.4": ("linear", ""),
    }
    assert len(_maps(result)) == 2
    again = transformed(TokenNet(depth=6), (X,), plan=repl_fx.Plan.from_json(result.plan.to_json()))
    assert again.plan == result.plan


def test_blocks_that_no_map_can_stand_for_are_refused() -> None:
    with pytest.raises(repl_fx.NothingToReplace) as refused:
        transformed(TokenNet(depth=3), (X,), surrogate="linear", settings={"rank": 16})
    assert "rank 16 is no bound for a map of 16 channels" in str(refused.value.reasons)
    refusal = make_surrogate("linear").match(layer_site(16))
    assert isinstance(refusal, Refusal) and refusal.reason == "it turns 2x8 into 2x16"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"form": "half"}, "form is 'half'; it can be full or scale"),
        ({"rank": 0}, "rank is 0; it must be a number, 1 or more"),
        ({"form": "scale", "rank": 2}, "rank is for form=full alone"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(repl_fx.BadInput, match=said):
        repl_fx.transform(TokenNet(depth=3), (X,), surrogate="linear", settings=settings)

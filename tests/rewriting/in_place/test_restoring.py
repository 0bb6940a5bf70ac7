"""Whole blocks made from surrogates: blends as they act, others silent at first; all the rest as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import repl_fx
from repl_fx.rewriting.in_place.restoring import restored_state
from tests.nets import ConvNet, Counts, TokenNet


class _Recomputed(nn.Module):
    """A block that computes again in the backward pass, so that its own code runs on no other weights."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = nn.LayerNorm(16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Any:
        return checkpoint(lambda y: y + torch.relu(self.layer(self.norm(y))), x, use_reentrant=False)


TOKENS, PICTURES = torch.randn(3, 6, 16), torch.randn(3, 3, 8, 8)


def _trained(model: nn.Module, x: Tensor, surrogate: str, every: int = 2, **settings: Any) -> repl_fx.TransformResult:
    """A transform whose weights, all of them, are others since."""
    result = repl_fx.transform(model, (x,), surrogate=surrogate, every=every, settings=settings)
    assert result.in_place.model is not None
    with torch.no_grad():
        for parameter in result.model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for name, buffer in result.model.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(0.3)
    return result


def _restored(result: repl_fx.TransformResult, model: nn.Module) -> nn.Module:
    state = restored_state(result.found, result.model, result.plan)
    assert list(state) == list(model.state_dict())
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize(("build", "x"), [(TokenNet, TOKENS), (ConvNet, PICTURES)])
def test_narrow_blocks_compute_what_they_did(build: Any, x: Tensor, every: int) -> None:
    torch.manual_seed(0)
    result = _trained(build(), x, "narrow", every=every, ratio=0.5)
    assert len(result.plan.replacements) == len(result.repeats[0]) // every
    expected = result.model.eval()(x)
    whole = _restored(result, build())
    torch.testing.assert_close(whole.eval()(x), expected, rtol=1e-5, atol=1e-5)
    whole.train()(x).square().sum().backward()
    found = (p.grad for n, p in whole.named_parameters() if n.endswith(("1.fc2.weight", "1.conv2.weight")))
    grad = next(grad for grad in found if grad is not None)
    # Units that nobody reads yet come to be read.
    assert bool(grad.transpose(0, 1).flatten(1).abs().sum(1).gt(0).all())


@pytest.mark.parametrize("per", ["tensor", "channel"])
@pytest.mark.parametrize(
    ("build", "x"),
    [
        (TokenNet, TOKENS),
        (ConvNet, PICTURES),
        (lambda: ConvNet(plain=True), PICTURES),
        (lambda: Counts(TokenNet()), TOKENS),
        (lambda: nn.Sequential(*(_Recomputed() for _ in range(5))), TOKENS),
    ],
)
def test_blends_compute_what_they_did(build: Any, x: Tensor, per: str) -> None:
    torch.manual_seed(0)
    result = _trained(build(), x, "blend", per=per)
    expected = result.model.eval()(x)
    before = {name: tensor.clone() for name, tensor in result.model.state_dict().items()}
    whole = _restored(result, build()).eval()
    torch.testing.assert_close(whole(x), expected, rtol=1e-5, atol=1e-5)
    # The model itself is as it was, and shares nothing with what was made of it.
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in result.model.state_dict().items())


@pytest.mark.parametrize(
    ("build", "x", "surrogate", "silent", "mean"),
    [
        (TokenNet, TOKENS, "bottleneck", ("attn.proj.weight", "attn.proj.bias", "fc2.weight"), "fc1.weight"),
        (TokenNet, TOKENS, "reuse", ("attn.proj.weight", "fc2.bias"), "attn.qkv.bias"),
        (TokenNet, TOKENS, "identity", ("attn.proj.weight", "fc2.weight"), "norm1.weight"),
        (ConvNet, PICTURES, "slim", ("bn2.weight", "bn2.bias"), "bn1.running_mean"),
        (ConvNet, PICTURES, "identity", ("bn2.weight",), "conv2.weight"),
    ],
)
def test_other_blocks_begin_silent_with_the_mean_of_their_neighbours(
    build: Any, x: Tensor, surrogate: str, silent: tuple[str, ...], mean: str
) -> None:
    torch.manual_seed(0)
    result = _trained(build(), x, surrogate)
    gone = set(build().state_dict()) - set(result.model.state_dict())
    state = _restored(result, build()).state_dict()
    now = result.model.state_dict()
    for name in silent:
        assert f"blocks.1.{name}" in gone and not state[f"blocks.1.{name}"].any()
    assert f"blocks.1.{mean}" in gone
    torch.testing.assert_close(
        state[f"blocks.1.{mean}"], (now[f"blocks.0.{mean}"] + now[f"blocks.2.{mean}"]) / 2, rtol=1e-6, atol=1e-7
    )
    assert all(torch.equal(state[name], now[name]) for name in state if name in now)
    # The function is that of the network without the surrogates.
    model = build()
    model.load_state_dict(state)
    pruned = build()
    pruned.load_state_dict(state)
    for number in (1, 3):
        pruned.blocks[number] = nn.Identity()
    torch.testing.assert_close(model.eval()(x), pruned.eval()(x), rtol=1e-5, atol=1e-5)


def test_a_coarse_block_has_its_own_weights_at_every_position() -> None:
    torch.manual_seed(0)
    result = _trained(ConvNet(), PICTURES, "coarse")
    whole = _restored(result, ConvNet())
    block, own = whole.get_submodule("blocks.1"), result.model.get_submodule("blocks.1.surrogate")
    now = result.model.state_dict()
    pair = [now[f"blocks.{i}.conv2.weight"] for i in (0, 2)]
    alpha, beta = (now[f"blocks.1.surrogate.coarse.{name}.1"].reshape(-1, 1, 1, 1) for name in ("alpha", "beta"))
    torch.testing.assert_close(block.get_parameter("conv2.weight"), alpha * pair[0] + beta * pair[1])
    assert torch.equal(block.get_parameter("bn2.weight"), own.get_parameter("norm.weight"))
    assert block.get_parameter("bn2.weight").any()


def test_a_tensor_that_is_tied_to_a_kept_one_has_its_value() -> None:
    torch.manual_seed(0)
    net = TokenNet(depth=3)
    net.blocks[1].fc2.bias = net.blocks[0].fc2.bias  # type: ignore[union-attr]
    result = _trained(net, TOKENS, "bottleneck")
    state = restored_state(result.found, result.model, result.plan)
    missing = set(net.state_dict()) - set(state)
    assert missing <= {"blocks.1.fc2.bias"}
    net.load_state_dict(state, strict=False)
    assert torch.equal(net.state_dict()["blocks.1.fc2.bias"], result.model.state_dict()["blocks.0.fc2.bias"])

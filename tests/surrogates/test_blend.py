from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import repl_fx
from repl_fx.surrogates.blend import BlendSynthesis
from tests.nets import ConvBlock, ConvNet, TokenNet, images, tokens


def test_block_runs_on_the_blend_of_its_neighbours() -> None:
    model, x = ConvNet(depth=3).eval(), images()
    gm = repl_fx.transform(model, (x,), surrogate="blend").graph_module
    blend = gm.get_submodule("surrogates.blocks_1.blend")
    assert isinstance(blend, BlendSynthesis)
    before, block, after = model.blocks
    assert isinstance(before, ConvBlock) and isinstance(block, ConvBlock) and isinstance(after, ConvBlock)
    with torch.no_grad():
        for i, name in enumerate(("conv1", "conv2")):
            weights = [getattr(b, name).weight for b in (before, after)]
            getattr(block, name).weight.copy_(blend.alpha[i] * weights[0] + blend.beta[i] * weights[1])
    assert torch.allclose(gm(x), model(x), atol=1e-6)


@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_gains_and_what_stays_the_blocks_own(per: str) -> None:
    result = repl_fx.transform(TokenNet(depth=3), (tokens(),), surrogate="blend", settings={"per": per})
    own = {n for n, _ in result.graph_module.named_parameters() if n.startswith("blocks.1.")}
    # Norms and biases stay, weights go.
    assert own == {
        f"blocks.1.{n}"
        for n in (
            "norm1.weight",
            "norm1.bias",
            "norm2.weight",
            "norm2.bias",
            "attn.qkv.bias",
            "attn.proj.bias",
            "fc1.bias",
            "fc2.bias",
        )
    }
    gains = {n: tuple(p.shape) for n, p in result.graph_module.named_parameters() if "alpha" in n}
    rows = [48, 16, 32, 16]
    assert list(gains.values()) == [(r, 1) if per == "channel" else (1, 1) for r in rows]


def test_gains_keep_the_scale_of_fresh_and_of_agreeing_weights() -> None:
    own = torch.randn(200, 200)
    fresh = BlendSynthesis([own], [(torch.randn(200, 200), torch.randn(200, 200))], [None], True)
    assert fresh.alpha[0].item() == pytest.approx(2**-0.5, rel=0.02)
    agreeing = BlendSynthesis([own], [(own, own)], [None], True)
    assert agreeing.alpha[0].item() == pytest.approx(0.5)
    assert BlendSynthesis([own * 0], [(own * 0, own * 0)], [None], True).alpha[0].item() == pytest.approx(2**-0.5)


def test_layers_of_any_kind_are_blended() -> None:
    """A convolution that standardises its weight, one with circular padding, an LSTM: traced into the graph."""

    class Standardised(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return F.conv2d(input, weight, self.bias, padding=1)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = Standardised(4, 4, 3)
            self.b = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
            self.c = nn.ConvTranspose2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.a(x).relu()).relu())  # type: ignore[no-any-return]

    model, x = nn.Sequential(*(Block() for _ in range(3))), torch.randn(2, 4, 6, 6)
    gm = repl_fx.transform(model, (x,), surrogate="blend").graph_module
    blend = gm.get_submodule("surrogates.1.blend")
    assert isinstance(blend, BlendSynthesis)
    with torch.no_grad():
        for i, name in enumerate("abc"):
            weights = [getattr(model[j], name).weight for j in (0, 2)]
            getattr(model[1], name).weight.copy_(blend.alpha[i] * weights[0] + blend.beta[i] * weights[1])
    assert torch.allclose(gm(x), model(x), atol=1e-6)
    assert torch.equal(repl_fx.fold(gm)(x[:1]), gm(x[:1]))

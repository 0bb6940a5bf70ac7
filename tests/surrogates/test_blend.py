from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import repl_fx
from repl_fx.surrogates.shared.blended_weights import BlendSynthesis
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


class Standardised(nn.Conv2d):
    """Standardises its weight."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(input, weight, self.bias, padding=1)


class Masked(nn.Conv2d):
    """Sees no pixel to the right; the mask is a buffer."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, padding=1)
        mask = torch.ones(3, 3)
        mask[:, 2] = 0
        self.register_buffer("mask", mask)

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.weight * self.get_buffer("mask"), self.bias, padding=1)


def _conv(name: str) -> nn.Module:
    if name == "weight_norm":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return nn.utils.weight_norm(nn.Conv2d(4, 4, 3, padding=1))
    makers: dict[str, Callable[[], nn.Module]] = {
        "standardised": lambda: Standardised(4, 4, 3),
        "circular": lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        "transposed": lambda: nn.ConvTranspose2d(4, 4, 3, padding=1),
        "same": lambda: nn.Conv2d(4, 4, 4, padding="same", dilation=2),
        "masked": lambda: Masked(4),
    }
    return makers[name]()


@pytest.mark.parametrize("kind", ["standardised", "circular", "transposed", "same", "masked"])
def test_layers_of_any_kind_run_their_own_code_on_blended_weights(kind: str) -> None:
    model = nn.Sequential(*(nn.Sequential(_conv(kind), nn.ReLU()) for _ in range(3)))
    x = torch.randn(2, 4, 6, 6)
    result = repl_fx.transform(model, (x,), surrogate="blend")
    gm = result.graph_module
    blend = gm.get_submodule("surrogates.1.blend")
    assert isinstance(blend, BlendSynthesis)
    with torch.no_grad():
        before, own, after = (model.get_parameter(f"{i}.0.weight") for i in range(3))
        own.copy_(blend.alpha[0] * before + blend.beta[0] * after)
    assert torch.allclose(gm(x), model(x), atol=1e-6)
    assert torch.equal(repl_fx.fold(gm)(x[:1]), gm(x[:1]))
    assert "1.0.weight" not in dict(gm.named_parameters()) and "1.0.bias" in dict(gm.named_parameters())


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.ConvTranspose2d(4, 6, 3, padding=1), (1, 6, 1, 1)),
        (nn.ConvTranspose1d(4, 6, 3, padding=1), (1, 6, 1)),
        (nn.Conv1d(4, 6, 3, padding=1), (6, 1, 1)),
        (nn.Linear(4, 6), (6, 1)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_gain_belongs_to_an_output_channel(layer: nn.Module, shape: tuple[int, ...]) -> None:
    back: Any = nn.Linear(6, 4) if isinstance(layer, nn.Linear) else type(layer)(6, 4, 3, padding=1)
    model = nn.Sequential(*(nn.Sequential(copy.deepcopy(layer), copy.deepcopy(back)) for _ in range(3)))
    gm = repl_fx.transform(model, (torch.randn(2, 4, *[5] * len(shape[2:])),), surrogate="blend").graph_module
    assert tuple(gm.get_parameter("surrogates.1.blend.alpha.0").shape) == shape


def test_a_gain_behind_a_transposed_convolution_belongs_to_its_own_layer() -> None:
    model = nn.Sequential(*(nn.Sequential(nn.ConvTranspose2d(4, 6, 1), nn.Conv2d(6, 4, 1)) for _ in range(3)))
    gm = repl_fx.transform(model, (torch.randn(2, 4, 5, 5),), surrogate="blend").graph_module
    shapes = [tuple(gm.get_parameter(f"surrogates.1.blend.alpha.{i}").shape) for i in range(2)]
    assert shapes == [(1, 6, 1, 1), (4, 1, 1, 1)]


@pytest.mark.parametrize("normalised", [(6,), (5, 6), (4, 5, 6)], ids=str)
def test_weights_of_norms_of_any_shape_stay_the_blocks_own(normalised: tuple[int, ...]) -> None:
    layers = (nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.LayerNorm(normalised)) for _ in range(3))
    model = nn.Sequential(*layers)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 4, 5, 6)
    gm = repl_fx.transform(model, (x,), surrogate="blend").graph_module
    blend = gm.get_submodule("surrogates.1.blend")
    assert isinstance(blend, BlendSynthesis) and len(blend.alpha) == 1
    with torch.no_grad():
        before, own, after = (model.get_parameter(f"{i}.0.weight") for i in range(3))
        own.copy_(blend.alpha[0] * before + blend.beta[0] * after)
    torch.testing.assert_close(gm(x), model(x))


def test_weights_computed_by_a_hook_are_blended_too() -> None:
    model = nn.Sequential(*(nn.Sequential(_conv("weight_norm"), nn.ReLU()) for _ in range(3)))
    x = torch.randn(2, 4, 6, 6)
    gm = repl_fx.transform(model, (x,), surrogate="blend").graph_module
    gm(x).square().mean().backward()
    assert gm.get_parameter("surrogates.1.blend.alpha.0").grad is not None
    assert "1.0.weight_v" not in dict(gm.named_parameters()) and "1.0.weight_g" in dict(gm.named_parameters())


class Noisy(nn.Linear):
    """Adds noise in training."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input + torch.randn_like(input) if self.training else input)


def test_a_layer_with_a_mode_of_its_own_keeps_it() -> None:
    x = torch.randn(4, 8)
    for training in (True, False):
        model = nn.Sequential(*(nn.Sequential(Noisy(8, 8), nn.Tanh()) for _ in range(4))).train(training)
        gm = repl_fx.transform(model, (x,), surrogate="blend").graph_module
        assert gm.training is training
        gm.eval()
        assert torch.equal(gm(x), gm(x))
        gm.train()
        assert not torch.equal(gm(x), gm(x))


@pytest.mark.parametrize("surrogate", ["blend", "auto"])
@pytest.mark.parametrize("recurrent", [nn.LSTM, nn.GRU])
def test_recurrent_layers(surrogate: str, recurrent: type[nn.RNNBase], tmp_path: Path) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(8)
            self.rnn = recurrent(8, 8, batch_first=True)  # type: ignore[call-arg,arg-type]

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = x + self.rnn(self.norm(x))[0]
            return out

    model, x = nn.Sequential(*(Recurrent() for _ in range(5))), torch.randn(2, 6, 8)
    result = repl_fx.transform(model, (x,), surrogate=surrogate)
    assert [len(repeat) for repeat in result.repeats] == [5]
    assert [r.surrogate for r in result.plan.replacements] == ["blend", "blend"]
    gm = result.graph_module
    gm(x).square().mean().backward()
    assert all(p.grad is not None for n, p in gm.named_parameters() if n.startswith("surrogates"))
    gm.eval()
    assert torch.equal(copy.deepcopy(gm)(x), gm(x))
    # Without a gradient to compute, torch takes another kernel.
    assert torch.allclose(repl_fx.fold(gm)(x), gm(x), atol=1e-6)
    repl_fx.save(result, tmp_path / "out")
    again = repl_fx.load(tmp_path / "out", nn.Sequential(*(Recurrent() for _ in range(5))))
    assert torch.equal(again(x), gm(x))


class Dropped(nn.Module):
    """A linear layer whose weight is dropped in training (DropConnect), by a module or a function, or scaled."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.inner, self.drop, self.how = nn.Linear(16, 16), nn.Dropout(0.5), how

    def forward(self, x: Tensor) -> Tensor:
        weight = self.inner.weight
        if self.how == "module":
            weight = self.drop(weight)
        elif self.how == "function":
            weight = F.dropout(weight, 0.5, self.training)
        elif self.how == "scaled":
            weight = weight.t().contiguous().t() * 2
        return x + F.relu(F.linear(x, weight, self.inner.bias))


@pytest.mark.parametrize("how", ["module", "function", "scaled"])
def test_weights_that_go_through_something_first(how: str) -> None:
    model, x = nn.Sequential(*(Dropped(how) for _ in range(3))), torch.randn(4, 16)
    gm = repl_fx.transform(copy.deepcopy(model), (x,), surrogate="blend").graph_module
    names = dict(gm.named_parameters())
    assert "1.inner.weight" not in names and "1.inner.bias" in names
    blend = gm.get_submodule("surrogates.1.blend")
    assert isinstance(blend, BlendSynthesis)
    with torch.no_grad():
        blend.alpha[0].mul_(1.5)
        before, own, after = (block.inner for block in model)
        own.weight.copy_(blend.alpha[0] * before.weight + blend.beta[0] * after.weight)  # type: ignore[union-attr, operator]
    folded = repl_fx.fold(gm)
    torch.testing.assert_close(gm.eval()(x), model.eval()(x))
    torch.testing.assert_close(folded.eval()(x), model(x))
    for module in (gm.train(), folded.train()):
        results = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            wanted = model.train()(x)
            torch.manual_seed(seed)
            results.append(module(x))
            torch.testing.assert_close(results[-1], wanted)
        # A fold that kept one draw would be the same each time.
        assert torch.equal(*results) == (how == "scaled")

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import repl_fx
from repl_fx.pipeline import rewrite
from repl_fx.planning.options import Options
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
            alpha, beta = (gains[i][:, None, None, None] for gains in (blend.alpha, blend.beta))
            getattr(block, name).weight.copy_(alpha * weights[0] + beta * weights[1])
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
    assert list(gains.values()) == [(r,) if per == "channel" else (1,) for r in rows]


class Distances(nn.Module):
    """Blocks that are all handed one table, as the layers of a DeBERTa are."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor, table: Tensor) -> Tensor:
            made: Tensor = x + self.value((x @ self.key(table).mT).softmax(-1) @ table)
            return made

    def __init__(self) -> None:
        super().__init__()
        self.table, self.blocks = nn.Embedding(4, 8), nn.ModuleList(self.Block() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, self.table.weight)
        return x


def test_a_weight_that_all_blocks_share_stays_theirs() -> None:
    model, x = Distances(), torch.randn(2, 5, 8)
    result = repl_fx.transform(model, (x,), surrogate="blend")
    blend = result.graph_module.get_submodule("surrogates.blocks_1").get_submodule("blend")
    assert isinstance(blend, BlendSynthesis)
    assert sorted(tuple(gain.shape) for gain in blend.alpha) == [(8,), (8,)]
    assert result.in_place.model is not None, result.in_place.reason
    assert torch.equal(result.model(x), result.graph_module(x))


@pytest.mark.parametrize("recurrent", [nn.LSTM, nn.GRU])
def test_recurrent_layers(recurrent: type[nn.RNNBase], tmp_path: Path) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(8)
            self.rnn = recurrent(8, 8, batch_first=True)  # type: ignore[call-arg,arg-type]

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = x + self.rnn(self.norm(x))[0]
            return out

    model, x = nn.Sequential(*(Recurrent() for _ in range(3))), torch.randn(2, 6, 8)
    captured = repl_fx.capture_parts(model, (x,))
    result = rewrite(captured, Options(surrogate="blend"))
    assert [len(repeat) for repeat in result.repeats] == [3]
    assert [r.surrogate for r in result.plan.replacements] == ["blend"]
    # `auto` comes to the same.
    assert rewrite(captured, Options()).plan.replacements == result.plan.replacements
    gm = result.graph_module
    gm(x).square().mean().backward()
    assert all(p.grad is not None for n, p in gm.named_parameters() if n.startswith("surrogates"))
    gm.eval()
    assert torch.equal(copy.deepcopy(gm)(x), gm(x))
    # Without a gradient to compute, torch takes another kernel.
    assert torch.allclose(repl_fx.fold(gm)(x), gm(x), atol=1e-6)
    repl_fx.save(result, tmp_path / "out")
    again = repl_fx.load(tmp_path / "out", nn.Sequential(*(Recurrent() for _ in range(3))))
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
        alpha, beta = blend.alpha[0][:, None], blend.beta[0][:, None]
        own.weight.copy_(alpha * before.weight + beta * after.weight)  # type: ignore[union-attr, operator]
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

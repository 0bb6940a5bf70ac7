"""The surrogate that mixes thin values by the attention map of the block before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import repl_fx
from repl_fx.errors import NothingToReplace
from repl_fx.surrogates.reuse import ValueForm, ValueSynthesis, _runs, value_weights
from tests.finding.layouts import Net
from tests.nets import ConvNet, TokenNet, TransformerBlock, as_after_training, images, rewritten, tokens


def _reused(model: nn.Module, x: Tensor, **settings: Any) -> fx.GraphModule:
    return rewritten(model, x, "reuse", settings).graph_module


def _synthesis(gm: nn.Module) -> ValueSynthesis:
    (found,) = (module for module in gm.modules() if isinstance(module, ValueSynthesis))
    return found


def test_it_is_its_docstring() -> None:
    model, x = TokenNet(depth=3, heads=4), tokens()
    gm = _reused(model, x, heads=2)
    made = _synthesis(gm)
    with torch.no_grad():
        as_after_training(gm)
        for bias in (made.bias_values, made.bias_out):
            assert bias is not None
            bias.normal_()
        streamed = model.embed(x)
        before, own, after = cast("Sequence[TransformerBlock]", model.blocks)
        streamed_1 = before(streamed)
        # The map of the block before, of its first two heads.
        q, k, _ = before.attn.qkv(before.norm1(streamed)).reshape(2, 6, 3, 4, 4).permute(2, 0, 3, 1, 4)
        attended = torch.softmax(q[:, :2] @ k[:, :2].transpose(-1, -2) / 2, -1)
        rows = [block.attn.qkv.weight[32:40] for block in (before, after)]
        weight = made.gain[:8, None] * rows[0] + made.gain[8:, None] * rows[1]
        values = F.linear(own.norm1(streamed_1), weight, made.bias_values)
        mixed = attended @ values.reshape(2, 6, 2, 4).transpose(1, 2)
        y = F.linear(mixed.transpose(1, 2).reshape(2, 6, 8), made.weight_out, made.bias_out)
        wanted = model.head(after(streamed_1 + y).mean(1))
        torch.testing.assert_close(gm(x), wanted)
    # With gradients, and what is kept computed again.
    torch.testing.assert_close(gm(x), wanted)


@pytest.mark.parametrize("weights", ["neighbours", "own"])
def test_training_begins_with_the_depth_pruned_network(weights: str) -> None:
    model, x = TokenNet(depth=3, dropout=0.1), tokens()
    pruned = rewritten(model, x, "identity").graph_module
    gm = _reused(model, x, weights=weights)
    torch.testing.assert_close(gm.eval()(x), pruned.eval()(x))
    gm.train()(x).square().sum().backward()
    grown = gm.get_parameter("surrogates.blocks_1.branch_0.weight_out").grad
    assert grown is not None and grown.abs().max() > 0
    # A quarter of two heads is one.
    assert grown.shape == (16, 8)


@pytest.mark.parametrize("kind", ["fused", "softmax", "head by head", "flat", "positions first", "apart", "grouped"])
def test_every_layout_gives_the_same_layer(kind: str) -> None:
    """With gain (1, 0) and the block before's own W_out, a stream that the block before saw is mixed as it did."""
    x = torch.randn(2, 4, 8)
    model = Net(kind).eval()
    heads = 1 if kind == "grouped" else 2
    gm = _reused(model, x, heads=heads).eval()
    made = _synthesis(gm)
    before = model.attentions[0]
    with torch.no_grad():
        made.gain.copy_(torch.tensor([1.0, 0.0]).repeat_interleave(4 * heads))
        made.weight_out.copy_(before.proj.weight[:, : 4 * heads])  # type: ignore[union-attr,index]
        source = before.v if kind in ("apart", "grouped") else before.qkv
        assert made.bias_values is not None and made.bias_out is not None
        units = [unit for run in made.runs for unit in range(run.start, run.start + run.count)]
        if kind != "flat":
            made.bias_values.copy_(source.bias[units])  # type: ignore[union-attr,index]
        made.bias_out.copy_(before.proj.bias)  # type: ignore[union-attr,arg-type]
        for norm in model.norms:
            norm.load_state_dict(model.norms[0].state_dict())
        call = next(n for n in gm.graph.nodes if n.op == "call_module" and "reuse" in str(n.target))
        # The surrogate on the network's input, which the block before reads.
        layer = gm.get_submodule(str(call.target))
        env: dict[fx.Node, Any] = {}

        class Kept(fx.Interpreter):
            def run_node(self, n: fx.Node) -> Any:
                env[n] = super().run_node(n)
                return env[n]

        Kept(gm).run(x)
        given = [env[a] if isinstance(a, fx.Node) else a for a in call.args]
        # Where a view lies between the norm and the attention, the norm stays a node of its own.
        n = model.norms[0](x)
        stream = {"flat": n.reshape(-1, 8), "positions first": n.transpose(0, 1)}.get(kind, x)
        found = layer(stream, *given[1:])
        wanted = before(model.norms[0](x))
        if kind == "positions first":
            found = found.reshape(4, 2, 8).transpose(0, 1)
        if kind == "grouped":
            # Two heads of queries, of which the first is taken.
            wanted = _first_head(before, model.norms[0](x))
        torch.testing.assert_close(found.reshape(2, 4, 8), wanted)


def _first_head(attention: Any, n: Tensor) -> Tensor:
    q, k, v = (layer(n)[..., :4] for layer in (attention.q, attention.k, attention.v))
    mixed = F.scaled_dot_product_attention(q, k, v)
    return F.linear(mixed, attention.proj.weight[:, :4], attention.proj.bias)


class Causal(nn.Module):
    """Attention to the past, by the flag or by a mask."""

    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.masked = masked
        self.norm, self.qkv, self.proj = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(batch, length, 3, 2, 4).permute(2, 0, 3, 1, 4)
        mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None] if self.masked else None
        out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=not self.masked)
        return x + self.proj(out.transpose(1, 2).reshape(batch, length, width))  # type: ignore[no-any-return]


class Biased(nn.Module):
    """A transformer block with a bias or mask of a given shape on its map; without a product, that is the map alone."""

    bias: Tensor

    def __init__(self, kind: torch.dtype, shape: tuple[int, ...], product: bool = True) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        # A mask lets every position see itself.
        bias = torch.randn(4, 6, 6) if kind.is_floating_point else (torch.rand(4, 6, 6) > 0.4) | torch.eye(6).bool()
        self.register_buffer("bias", (bias if 4 in shape else bias[0]).reshape(shape))
        self.product = product

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).reshape(-1, 6, 3, 4, 4).permute(2, 0, 3, 1, 4)
        attend = F.scaled_dot_product_attention
        out = attend(q, k, v, self.bias) if self.product else torch.softmax(self.bias, -1) @ v
        return x + self.proj(out.transpose(1, 2).reshape(-1, 6, 16))  # type: ignore[no-any-return]


def _biased(kind: torch.dtype, shape: tuple[int, ...], product: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(Biased(kind, shape, product) for _ in range(3)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [torch.float32, torch.bool])
def test_a_bias_without_batch_is_that_of_the_heads_that_are_kept(kind: torch.dtype) -> None:
    x = tokens()
    results = []
    for shape in ((1, 4, 6, 6), (4, 6, 6)):
        gm = _reused(_biased(kind, shape), x, heads=2)
        torch.manual_seed(1)
        as_after_training(gm)
        results.append(gm(x))
        with torch.no_grad():
            torch.testing.assert_close(gm(x), results[-1])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("shape", [(6, 6), (1, 6, 6), (1, 1, 6, 6)])
def test_a_bias_for_all_heads_is_that_of_each(shape: tuple[int, ...]) -> None:
    x = tokens()
    gm = _reused(_biased(torch.float32, shape), x, heads=2)
    as_after_training(gm)
    gm(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for n, p in gm.named_parameters() if n.startswith("surrogates."))


@pytest.mark.parametrize("shape", [(4, 6, 6), (1, 4, 6, 6), (6, 6)])
def test_a_map_for_all_examples_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(NothingToReplace, match="one attention map for several examples or heads"):
        _reused(_biased(torch.float32, shape, product=False), tokens())


@pytest.mark.parametrize("masked", [True, False])
def test_the_future_stays_unseen(masked: bool) -> None:
    x = torch.randn(2, 10, 8)
    later = x.clone()
    later[:, 6:] += 1
    gm = _reused(nn.Sequential(*(Causal(masked) for _ in range(3))), x).eval()
    as_after_training(gm)
    torch.testing.assert_close(gm(later)[:, :6], gm(x)[:, :6], rtol=0, atol=0)
    assert not torch.equal(gm(later)[:, 6:], gm(x)[:, 6:])


def test_consecutive_blocks_share_one_map_and_lengths_may_change() -> None:
    model, x = TokenNet(depth=5, heads=4), tokens()
    gm = repl_fx.transform(model, (x,), blocks=["blocks.1", "blocks.2"], surrogate="reuse").graph_module.eval()
    as_after_training(gm)
    maps = {n.args[5].args[0] for n in gm.graph.nodes if n.op == "call_module" and "reuse" in str(n.target)}
    assert len(maps) == 1
    assert gm(tokens(3, 6)).shape == (3, 10)
    with torch.no_grad():
        torch.testing.assert_close(repl_fx.fold(gm)(x), gm(x), rtol=0, atol=0)


def test_what_has_no_attention_is_refused_and_auto_knows() -> None:
    with pytest.raises(repl_fx.NothingToReplace, match="0 products with an attention map"):
        _reused(ConvNet(), images())
    for model, x, key in ((ConvNet(), images(), "slim"), (TokenNet(), tokens(), "reuse")):
        plan = repl_fx.transform(model, (x,), surrogate="auto").plan
        assert {replacement.surrogate for replacement in plan.replacements} == {key}


@pytest.mark.slow
def test_a_map_that_may_not_be_there_is_not_reused() -> None:
    """Where layers are dropped in training, the block before may not have run."""

    class DropsLayers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(TransformerBlock(16) for _ in range(5))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                if self.training and bool(torch.rand([]) < 0.4):
                    continue
                x = layer(x)
            return x

    x = tokens()
    with pytest.raises(repl_fx.NothingToReplace, match=r"layers\.0 may be skipped in training"):
        _reused(DropsLayers(), x)
    result = repl_fx.transform(DropsLayers(), (x,))
    assert [replacement.surrogate for replacement in result.plan.replacements] == ["bottleneck"] * 2
    for _ in range(8):
        assert result.graph_module.train()(x).shape == x.shape


@pytest.mark.parametrize("settings", [{"ratio": 0}, {"ratio": 1.5}, {"heads": 0}, {"heads": "two"}, {"weights": "all"}])
def test_settings_that_make_no_sense(settings: dict[str, Any]) -> None:
    with pytest.raises(repl_fx.BadInput, match="reuse: "):
        _reused(TokenNet(), tokens(), **settings)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("begin", [0.0, 0.7])
def test_the_output_begins_as_long_as_asked(own: bool, begin: float) -> None:
    form = ValueForm(6, begin, bias_values=True, bias_out=False)
    weight, runs = torch.randn(8, 6), _runs([1, 2, 5], 0)
    made = value_weights(weight, runs, form) if own else ValueSynthesis(weight, runs, form, train_neighbours=True)
    weight_out = made.get_parameter("weight_out")
    assert weight_out.shape == (6, 3)
    torch.testing.assert_close(weight_out.norm(), torch.tensor(begin))
    assert made.names == ("weight_values", "weight_out", "bias_values")

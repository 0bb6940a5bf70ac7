"""Surrogates in place mix by the attention maps of kept blocks, as these make them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import repl_fx
from repl_fx.rewriting.in_place.attention_calls import WatchedForward, this_thread
from tests.nets import Row, TokenNet, TransformerBlock, as_after_training

X, NARROW = torch.randn(2, 6, 16), torch.randn(2, 6, 8)


def _watched(module: nn.Module) -> WatchedForward:
    found = WatchedForward.on(module)
    assert found is not None
    return found


def _model(dropout: float = 0.0) -> Any:
    model = repl_fx.transform(TokenNet(depth=5, dropout=dropout), (X,), surrogate="reuse").model
    as_after_training(model)
    return model


def test_calls_belong_to_the_thread_that_runs() -> None:
    with ThreadPoolExecutor(1) as pool:
        assert len({0, this_thread(), pool.submit(this_thread).result()}) == 3


def test_a_map_is_taken_once() -> None:
    model = _model().eval()
    model(X)
    with pytest.raises(RuntimeError, match=r"attention map of blocks.0.attn, which has made none .* since"):
        model.blocks[1](X)
    model.blocks[1](model.blocks[0](X))


def test_another_kernel_of_attention_is_refused() -> None:
    model = _model().eval()
    _watched(model.blocks[0].attn).own = lambda x: x
    with pytest.raises(RuntimeError, match="do not change how the model computes attention"):
        model(X)


def test_layers_of_their_own_checkpoint_give_the_same_gradients() -> None:
    model = _model(dropout=0.1).train()

    def gradients(run: Any) -> list[Tensor]:
        model.zero_grad()
        torch.manual_seed(0)
        x = X
        for block in model.blocks:
            x = run(block, x)
        torch.autograd.backward(x.square().mean())
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    expected = gradients(lambda block, x: block(x))
    found = gradients(lambda block, x: checkpoint(block, x, use_reentrant=False))
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        gradients(lambda block, x: checkpoint(block, x.requires_grad_(), use_reentrant=True))


@pytest.mark.slow
def test_a_map_made_without_gradients_is_refused_where_they_are_wanted() -> None:
    model = _model()
    with torch.no_grad():
        x = model.blocks[0](X)
    with pytest.raises(RuntimeError, match=r"blocks.0.attn, which was made without gradients"):
        model.blocks[1](x.requires_grad_())


class _Manual(nn.Module):
    """Attention written out, with the map by softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(batch, tokens, 3, 2, 4).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1)
        attended = torch.softmax(scores if bias is None else scores + bias, -1) @ v
        return x + self.out(attended.transpose(1, 2).reshape(batch, tokens, width))  # type: ignore[no-any-return]


def test_a_map_that_is_written_out_is_the_one_of_this_call() -> None:
    result = repl_fx.transform(Row(*(_Manual() for _ in range(3))), (NARROW,), surrogate="reuse")
    model: Any = result.model.eval()
    as_after_training(model)
    assert torch.equal(model(NARROW), result.graph_module.eval()(NARROW))
    # A bias that the trace did not see is in the map.
    first = model.blocks[0](NARROW, bias := torch.randn(1, 1, 6, 6))
    biased = model.blocks[1](first, bias)
    model.blocks[0](NARROW)
    assert not torch.allclose(biased, model.blocks[1](first))


def test_values_shorter_than_the_map_are_refused() -> None:
    model = _model().eval()
    attention = model.blocks[0].attn

    def longer(x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = attention.qkv(x).reshape(batch, tokens, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        k, v = (torch.cat([t, t], 2) for t in (k, v))
        out = F.scaled_dot_product_attention(q, k, v)
        return attention.proj(out.transpose(1, 2).reshape(x.shape))  # type: ignore[no-any-return]

    _watched(attention).own = longer
    with pytest.raises(RuntimeError, match=r"attends to 12 positions, and the surrogate of blocks.1 has values of 6"):
        model(X)


class _Masked(_Manual):
    """Attention by torch's kernel, with a mask for each head."""

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(batch, tokens, 3, 2, 4).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return x + self.out(attended.transpose(1, 2).reshape(batch, tokens, width))  # type: ignore[no-any-return]


@pytest.mark.parametrize("shape", [(6, 6), (1, 1, 6, 6), (1, 2, 6, 6), (2, 2, 6, 6)], ids=str)
def test_masks_of_each_head_are_taken_as_the_graph_takes_them(shape: tuple[int, ...]) -> None:
    bias = torch.randn(shape)
    result = repl_fx.transform(Row(*(_Masked() for _ in range(3))), (NARROW, bias), surrogate="reuse")
    model: Any = result.model.eval()
    as_after_training(model)
    other = torch.randn(shape)
    assert model is not result.graph_module
    assert torch.equal(model(NARROW, other), result.graph_module.eval()(NARROW, other))
    assert not torch.allclose(model(NARROW, other), model(NARROW, bias))


class _Timed(TransformerBlock):
    """A block with the embedding of a step of diffusion, which it reads before its stream."""

    def __init__(self) -> None:
        super().__init__(16)
        self.steps = nn.Embedding(10, 16)

    def forward(self, x: Tensor, step: Tensor) -> Tensor:  # type: ignore[override]
        shift = self.steps(step)[:, None]
        x = x + self.attn(self.norm1(x) + shift)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))  # type: ignore[no-any-return]


def test_the_stream_need_not_be_the_first_value_that_is_read() -> None:
    torch.manual_seed(0)
    given = X, torch.tensor([1, 7])
    result = repl_fx.transform(Row(*(_Timed() for _ in range(3))), given, surrogate="reuse")
    assert not result.in_place.refusals
    assert torch.equal(result.model.eval()(*given), result.module.eval()(*given))

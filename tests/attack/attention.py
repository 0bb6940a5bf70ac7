"""Self-attention branches of random networks, with every form of bias, mask and position."""

from __future__ import annotations

import math
import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADS = 2
BIASES = ("none", "none", "square", "heads", "one_heads", "buffer", "table", "causal", "added_mask", "alibi")


class Attention(nn.Module):
    """Self-attention over (batch, tokens, width), or (tokens, width) without a batch.

    Args:
        rng: decides on the form.
        width, tokens: sizes.
        side: whether a mask (batch, tokens) of bools is given to the forward.
        keep_map: whether the last attention map stays on the module, for people to look at.
    """

    def __init__(self, rng: random.Random, width: int, tokens: int, side: bool = False, keep_map: bool = False) -> None:
        super().__init__()
        self.fused = rng.random() < 0.5
        self.by_hand = keep_map or rng.random() < 0.4
        self.bias_kind = "none" if side else rng.choice(BIASES)
        self.keep_map = keep_map
        self.rotary = rng.random() < 0.2
        self.p = rng.choice([0.0, 0.0, 0.1])
        self.last: Tensor | None = None
        # Without a draw of the caller's, whose networks would all be others.
        own = random.Random()
        own.setstate(rng.getstate())
        self.by_view = own.random() < 0.5
        if self.fused:
            self.qkv = nn.Linear(width, 3 * width, bias=rng.random() < 0.7)
        else:
            self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.proj = nn.Linear(width, width)
        shape = {"square": (tokens, tokens), "heads": (HEADS, tokens, tokens), "one_heads": (1, HEADS, tokens, tokens)}
        if self.bias_kind in shape:
            self.bias = nn.Parameter(torch.randn(shape[self.bias_kind]))
        elif self.bias_kind == "buffer":
            self.register_buffer("bias", torch.randn(HEADS, tokens, tokens), persistent=rng.random() < 0.5)
        elif self.bias_kind == "table":
            self.bias = nn.Parameter(torch.randn(2 * tokens - 1, HEADS))
            places = torch.arange(tokens)
            self.register_buffer("index", places[:, None] - places[None] + tokens - 1)
        elif self.bias_kind == "added_mask":
            self.register_buffer("bias", torch.full((tokens, tokens), float("-inf")).triu(1))
        elif self.bias_kind == "alibi":
            slopes = torch.tensor([0.5, 0.25])
            self.register_buffer("bias", -slopes[:, None, None] * torch.arange(tokens).float()[None, None])

    def _rotated(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[-2], device=x.device, dtype=x.dtype)[:, None]
        a, b = x.chunk(2, -1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

    def _biases(self) -> Tensor | None:
        if self.bias_kind in ("none", "causal"):
            return None
        if self.bias_kind == "table":
            return self.bias[self.index].permute(2, 0, 1)  # type: ignore[index]
        return self.bias

    def forward(self, x: Tensor, side: Tensor | None = None) -> Tensor:
        size = x.shape[-1] // HEADS
        if self.fused:
            q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, size)).movedim(-3, 0).transpose(-3, -2)
        else:
            q, k, v = (f(x).unflatten(-1, (HEADS, size)).transpose(-3, -2) for f in (self.q, self.k, self.v))
        if self.rotary and size % 2 == 0:
            q, k = self._rotated(q), self._rotated(k)
        bias = self._biases()
        mask = None if side is None else side[:, None, None, :]
        if self.by_hand:
            scores = q @ k.transpose(-2, -1) / math.sqrt(size)
            if bias is not None:
                scores = scores + bias
            if mask is not None:
                scores = scores.masked_fill(~mask, -1e4)
            if self.bias_kind == "causal":
                scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), float("-inf"))
            attention = F.dropout(scores.softmax(-1), self.p, self.training)
            if self.keep_map:
                self.last = attention.detach()
            out = attention @ v
        else:
            out = F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=bias if mask is None else mask,
                dropout_p=self.p if self.training else 0.0,
                is_causal=self.bias_kind == "causal",
            )
        # As people write it who want no copy, and get one under some kernels.
        joined = out.transpose(-3, -2).contiguous().view(x.shape) if self.by_view else out.transpose(-3, -2).flatten(-2)
        return self.proj(joined)  # type: ignore[no-any-return]

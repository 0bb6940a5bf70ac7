"""A small GPT on bytes: eight pre-norm blocks of width 128, causal attention, output tied to the embedding.

Radford et al., Language Models are Unsupervised Multitask Learners (2019), in the shape of GPT-2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY = 256


class CausalAttention(nn.Module):
    """Multi-head self-attention in which a position sees itself and what is before it.

    Args:
        width: size of a token, a multiple of `heads`.
        heads: number of heads.
        dropout: probability of dropping an attention weight, and an output feature.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.proj_dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, length, width) to the same shape."""
        batch, length, width = x.shape
        q, k, v = (
            part.reshape(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        dropout = self.dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        x = x.transpose(1, 2).reshape(batch, length, width)
        out: Tensor = self.proj_dropout(self.proj(x))
        return out


class Block(nn.Module):
    """Attention, then an MLP of two layers, each normalised before and added to its input.

    Args:
        width: size of a token.
        heads: number of attention heads.
        dropout: probability of every dropout in the block.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = CausalAttention(width, heads, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, length, width) to the same shape."""
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.dropout(self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh")))
        return out


class GPT(nn.Module):
    """A language model: the logits at a position are for the byte after it.

    Args:
        context: longest sequence it takes.
        width: size of a token.
        depth: number of blocks.
        heads: number of attention heads.
        dropout: probability of every dropout.
    """

    def __init__(
        self, context: int = 256, width: int = 128, depth: int = 8, heads: int = 4, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Map byte ids (batch, length) to logits (batch, length, 256)."""
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.dropout(self.tokens(ids) + self.positions(positions))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


def model() -> nn.Module:
    """The language model with random weights."""
    return GPT()


def example_inputs() -> tuple[Tensor, ...]:
    """Two sequences of 32 random bytes."""
    return (torch.randint(0, VOCABULARY, (2, 32)),)

"""A GPT in the form that most people write first: one file, a config, `forward(ids, targets=None)`, `generate`.

Attention goes through `scaled_dot_product_attention`, and `.transpose(1, 2).contiguous().view(…)` puts its heads back
together. Without targets only the logits of the last position are made; with them, the loss as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Config:
    """Sizes of the network.

    Attributes:
        context: longest sequence it takes.
        vocabulary: number of tokens.
        depth: number of blocks.
        heads: attention heads of a block; they divide the width.
        width: size of a token.
        dropout: probability of every dropout.
        bias: whether linear layers and norms have biases, as in GPT-2.
    """

    context: int = 64
    vocabulary: int = 256
    depth: int = 6
    heads: int = 4
    width: int = 64
    dropout: float = 0.0
    bias: bool = False


class Norm(nn.Module):
    """A layer norm that may do without a bias."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.c_attn = nn.Linear(config.width, 3 * config.width, bias=config.bias)
        self.c_proj = nn.Linear(config.width, config.width, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, length, width) to the same shape."""
        b, t, c = x.size()
        q, k, v = self.c_attn(x).split(c, dim=2)
        q = q.view(b, t, self.heads, c // self.heads).transpose(1, 2)
        k = k.view(b, t, self.heads, c // self.heads).transpose(1, 2)
        v = v.view(b, t, self.heads, c // self.heads).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0, is_causal=True)
        y = y.transpose(1, 2).contiguous().view(b, t, c)
        out: Tensor = self.resid_dropout(self.c_proj(y))
        return out


class MLP(nn.Module):
    """Two layers, four times as wide between."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.width, 4 * config.width, bias=config.bias)
        self.gelu = nn.GELU()
        self.c_proj = nn.Linear(4 * config.width, config.width, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dropout(self.c_proj(self.gelu(self.c_fc(x))))
        return out


class Block(nn.Module):
    """Attention and MLP, each behind a norm and added to its input."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.ln_1 = Norm(config.width, config.bias)
        self.attn = Attention(config)
        self.ln_2 = Norm(config.width, config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class NanoGPT(nn.Module):
    """A language model whose output layer is tied to its embedding."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        wte = nn.Embedding(config.vocabulary, config.width)
        blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.transformer: Any = nn.ModuleDict(
            {
                "wte": wte,
                "wpe": nn.Embedding(config.context, config.width),
                "drop": nn.Dropout(config.dropout),
                "h": blocks,
                "ln_f": Norm(config.width, config.bias),
            }
        )
        self.lm_head = nn.Linear(config.width, config.vocabulary, bias=False)
        wte.weight = self.lm_head.weight
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                deep = name.endswith("c_proj.weight")
                nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * config.depth) if deep else 1))

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits (batch, length, vocabulary) and loss; without targets those of the last position, and None."""
        _, t = ids.size()
        assert t <= self.config.context, f"{t} tokens, and the context has {self.config.context}"
        positions = torch.arange(0, t, dtype=torch.long, device=ids.device)
        x = self.transformer.drop(self.transformer.wte(ids) + self.transformer.wpe(positions))
        for block in self.transformer.h:
            x = block(x)
        x = self.transformer.ln_f(x)
        if targets is None:
            return self.lm_head(x[:, [-1], :]), None
        logits = self.lm_head(x)
        return logits, F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1), ignore_index=-1)

    @torch.no_grad()
    def generate(self, ids: Tensor, count: int) -> Tensor:
        """The sequences with `count` more tokens, each the likeliest."""
        for _ in range(count):
            logits, _ = self(ids[:, -self.config.context :])
            ids = torch.cat((ids, logits[:, -1, :].argmax(-1, keepdim=True)), dim=1)
        return ids


def model() -> nn.Module:
    """The language model with random weights."""
    return NanoGPT(Config())


def example_inputs() -> tuple[Tensor, Tensor]:
    """Two sequences of 32 random tokens, and what follows each."""
    text = torch.randint(0, Config().vocabulary, (2, 33))
    return text[:, :-1].contiguous(), text[:, 1:].contiguous()

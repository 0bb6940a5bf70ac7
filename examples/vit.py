"""A small vision transformer for 32×32 images: patches of 4, width 96, nine pre-norm blocks.

Dosovitskiy et al., An Image is Worth 16x16 Words (arXiv 2010.11929), with stochastic depth that grows with depth
(Huang et al., arXiv 1603.09382).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DropPath(nn.Module):
    """Drop a residual branch for some samples of the batch, in training only.

    Args:
        probability: share of the samples that lose the branch; the others are scaled up to keep the mean.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (batch, ...)."""
        if not self.training or self.probability == 0.0:
            return x
        kept = 1.0 - self.probability
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(kept)
        return x * mask / kept


class Attention(nn.Module):
    """Multi-head self-attention.

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
        """Map tokens (batch, tokens, width) to the same shape."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        x = x.transpose(1, 2).reshape(batch, tokens, width)
        out: Tensor = self.proj_dropout(self.proj(x))
        return out


class Block(nn.Module):
    """Attention, then an MLP of two layers, each normalised before and added to its input.

    Args:
        width: size of a token.
        heads: number of attention heads.
        dropout: probability of every dropout in the block.
        drop_path: probability of dropping a whole branch.
    """

    def __init__(self, width: int, heads: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(4 * width, width),
            nn.Dropout(dropout),
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (batch, tokens, width) to the same shape."""
        x = x + self.drop_path(self.attention(self.norm1(x)))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out


class VisionTransformer(nn.Module):
    """A stack of transformer blocks on image patches, classified through a class token.

    Args:
        image: height and width of the images, in pixels.
        patch: height and width of a patch, in pixels.
        width: size of a token.
        depth: number of blocks.
        heads: number of attention heads.
        classes: size of the output.
        dropout: probability of every dropout.
        drop_path: probability of dropping a branch in the last block; it grows linearly from 0 in the first.
    """

    def __init__(
        self,
        image: int = 32,
        patch: int = 4,
        width: int = 96,
        depth: int = 9,
        heads: int = 3,
        classes: int = 10,
        dropout: float = 0.1,
        drop_path: float = 0.1,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, (image // patch) ** 2 + 1, width) * 0.02)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(width, heads, dropout, drop_path * i / max(depth - 1, 1)) for i in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (batch, 3, image, image) to logits (batch, classes)."""
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.dropout(x + self.positions)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x)[:, 0])
        return logits


def model() -> nn.Module:
    """The vision transformer with random weights."""
    return VisionTransformer()


def example_inputs() -> tuple[Tensor, ...]:
    """Two CIFAR-sized images."""
    return (torch.randn(2, 3, 32, 32),)

"""Attention written in many ways."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS = 8, 2


class Layout(nn.Module):
    """Attention of two heads of 4 channels, written in one of many ways."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        kept = WIDTH if kind not in ("grouped", "grouped, cached") else 4
        self.q, self.k, self.v = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, kept), nn.Linear(WIDTH, kept)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.weight = nn.Parameter(torch.randn(WIDTH, 3 * WIDTH) / 3)
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        if self.kind in ("fused", "softmax", "values normalised"):
            q, k, v = self.qkv(x).reshape(batch, length, 3, HEADS, 4).permute(2, 0, 3, 1, 4)
            v = self.norm(v) if self.kind == "values normalised" else v
        elif self.kind == "head by head":
            q, k, v = self.qkv(x).view(batch, length, HEADS, 12).transpose(1, 2).chunk(3, -1)
        elif self.kind == "flat":
            made = torch.addmm(torch.zeros(3 * width), x.reshape(-1, width), self.weight).view(batch, length, -1)
            q, k, v = (part.view(batch, length, HEADS, 4).transpose(1, 2) for part in torch.split(made, width, -1))
        elif self.kind == "positions first":
            made = self.qkv(x.transpose(0, 1)).view(length, batch, 3, HEADS, 4)
            q, k, v = (made[:, :, i].permute(1, 2, 0, 3) for i in range(3))
        elif self.kind == "torn":
            # One head for each half of the positions.
            q, k, v = (layer(x).reshape(batch, 2, length, 4) for layer in (self.q, self.k, self.v))
        else:
            q, k, v = (layer(x).view(batch, length, -1, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
            if self.kind == "grouped, cached":
                # A cache that has no positions yet.
                k, v = (torch.cat([t.new_empty(batch, 1, 0, 4), t], 2) for t in (k, v))
            if self.kind.startswith("grouped"):
                k, v = (t[:, :, None].expand(-1, -1, 2, -1, -1).reshape(batch, 2, length, 4) for t in (k, v))
        if self.kind == "softmax":
            out = F.dropout(torch.softmax(q @ k.transpose(-1, -2) / 2, -1), 0.1, self.training) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v)
        if self.kind == "positions first":
            return self.proj(out.permute(2, 0, 1, 3).reshape(-1, width)).view(length, batch, width).transpose(0, 1)  # type: ignore[no-any-return]
        return self.proj(out.transpose(1, 2).reshape(batch, length, width))  # type: ignore[no-any-return]


class Net(nn.Module):
    """Three residual attentions."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.attentions = nn.ModuleList(Layout(kind) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for norm, attention in zip(self.norms, self.attentions, strict=True):
            x = x + attention(norm(x))
        return x

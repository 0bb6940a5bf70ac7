"""Blocks of two halves, and steps of training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

X = torch.randn(2, 5, 8)


class Pair(nn.Module):
    """A mixer, which all of a kind have alike, and layers of one of two kinds."""

    def __init__(self, odd: bool) -> None:
        super().__init__()
        self.norm, self.mix, self.drop = nn.LayerNorm(8), nn.Linear(8, 8), nn.Dropout(0.1)
        self.mlp = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU() if odd else nn.ReLU(), nn.Linear(16, 8))
        self.odd = odd

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        x = x + self.drop(self.mix(self.norm(x))) * scale
        y = self.mlp(x)
        return x + (torch.tanh(y) if self.odd else y)


def steps(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and gradients in both modes; the order of parameters differs in place."""
    outputs, gradients = list[Tensor](), list[Tensor]()
    for training in (False, True):
        model.train(training).zero_grad()
        torch.manual_seed(0)
        outputs.append(model(X))
        outputs[-1].square().sum().backward()  # type: ignore[no-untyped-call]
        found = (p.grad for p in model.parameters() if p.grad is not None)
        gradients += sorted(found, key=lambda gradient: (gradient.numel(), gradient.norm().item()))
    return outputs, gradients

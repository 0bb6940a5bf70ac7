"""A model file: five blocks between an embedding and a head that share their weight."""

from __future__ import annotations

MODEL = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 32), nn.Linear(32, width)

    def forward(self, x):
        return x + self.fc2(self.fc1(self.norm(x)).relu())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 16)
        self.blocks = nn.Sequential(*(Block(16) for _ in range(5)))
        self.head = nn.Linear(16, 11, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("shift", torch.linspace(-1.0, 1.0, 16), persistent=False)

    def forward(self, ids):
        return self.head(self.blocks(self.embed(ids) + self.shift))


def model():
    return Net()


def example_inputs():
    return (torch.arange(12).reshape(2, 6) % 11,)
"""

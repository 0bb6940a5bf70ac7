"""A model file whose model holds tables and buffers that are in no state_dict, and an artifact of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import repl_fx
from repl_fx.sources import load_source

TABLES = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        return x + self.fc2(self.fc1(x).relu())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)
        self.register_buffer("seen", torch.zeros(8), persistent=False)
        self.register_buffer("wide", torch.ones(1).expand(8), persistent=False)
        self.table = torch.linspace(0.0, 1.0, 48).reshape(6, 8) + ANGLE
        self.blocks = nn.Sequential(*(Block() for _ in range(3)))

    def forward(self, x):
        if self.training:
            self.seen += x.mean((0, 1)).detach()
        return self.blocks(x * self.scale + self.table) + self.seen + self.wide


def model():
    return Net()


def example_inputs():
    return (torch.randn(2, 6, 8),)
"""
X = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))


def write(file: Path, angle: float = 0.0, scale: str = "2.0") -> Path:
    file.write_text(f"ANGLE = {angle}\n{TABLES}".replace("2.0", scale))
    return file


def transformed(place: Path, **options: Any) -> tuple[repl_fx.TransformResult, Path]:
    source = load_source(str(write(place / "net.py")))
    result = repl_fx.transform(source.model, source.args, **options)
    return result, repl_fx.save(result, place / "out", source=source)

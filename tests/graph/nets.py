"""The network of which several tests of this folder take a graph, and the search for a call in one."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.lstm = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.LSTM(8, 8)
        self.extra, self.unused = nn.Linear(8, 8), nn.Parameter(torch.ones(3))
        self.register_buffer("hidden", torch.ones(8), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.fc(x)) * self.hidden
        if self.training:
            x = x + self.extra(x)
        return self.lstm(x)[0]  # type: ignore[no-any-return]


def call(gm: fx.GraphModule, name: str) -> fx.Node:
    found: fx.Node = next(n for n in gm.graph.nodes if n.op == "call_module" and n.target == name)
    return found

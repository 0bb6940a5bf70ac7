"""The network that is no single graph, in the tests of this folder."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def sensible(x: Tensor) -> bool:
    return float(x.detach().numpy().sum()) < 1e9


class Chosen(nn.Module):
    """Runs `inner`, unless a value says otherwise, which numpy sees: never one graph itself."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, *rest: Any) -> Any:
        return self.inner(x, *rest) if sensible(x) else x

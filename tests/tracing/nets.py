"""Parts of networks that several tests use, and the facts that a graph keeps of its capture."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from repl_fx.tracing.capture import CaptureInfo


class Linear(nn.Module):
    """One linear layer; `forward` is given by the subclasses."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)


def info_of(gm: nn.Module) -> CaptureInfo:
    meta: Any = gm.meta
    return meta["capture"]  # type: ignore[no-any-return]


def keeps_an_activation(net: Any, x: Tensor) -> Tensor:
    net.kept = x * 2
    net.table["latest"] = x
    return x

"""A capture notes which values modules are called with, and which they return."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.graph.boundaries import at_boundaries
from tests.nets import MlpBlock


class _Two(MlpBlock):
    def forward(self, x: Tensor, mask: Tensor | None = None, flag: bool = True) -> Any:
        return super().forward(x if mask is None else x * mask), mask, flag


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Two(8) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for block in self.blocks:
            x, _, _ = block(x, mask=mask)
        return x


def test_arguments_and_results_are_noted() -> None:
    gm = repl_fx.capture(_Net(), (torch.randn(2, 6, 8), torch.randn(2, 6, 1)))
    found = list(at_boundaries(gm.graph, "blocks.1"))
    (call,) = {boundary.call for _, boundary in found}
    assert [(n.name, b.argument, b.leaf) for n, b in found if n.op == "placeholder"] == [
        ("mask", ("mask",), -1),
        # What is handed through is a result too.
        ("mask", None, 1),
    ]
    first = {node for node, boundary in at_boundaries(gm.graph, "blocks.0") if boundary.leaf == 0}
    assert first == {node for node, boundary in found if boundary.argument == ("x",)}
    assert call.calls == [call]
    assert call.given[("flag",)] is True and issubclass(call.given[("mask",)], Tensor)
    assert dict(call.constants) == {2: True}
    # Layers stay nodes, and are no blocks.
    assert not list(at_boundaries(gm.graph, "blocks.1.fc1"))


def test_a_second_call_is_another() -> None:
    block = MlpBlock(8)
    gm = repl_fx.capture(nn.Sequential(block, nn.Tanh(), block), (torch.randn(2, 6, 8),))
    calls = {boundary.call for _, boundary in at_boundaries(gm.graph, "0")}
    assert len(calls) == 2
    assert all(len(call.calls) == 2 for call in calls)


def test_hooks_may_make_the_arguments_that_a_forward_takes() -> None:
    class Scaled(MlpBlock):
        def forward(self, x: Tensor, scale: float) -> Tensor:  # type: ignore[override]
            return super().forward(x) * scale

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Scaled(8) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x)
            return x

    model, x = Net(), torch.randn(2, 6, 8)
    for block in model.blocks:
        block.register_forward_pre_hook(lambda module, args, kwargs: (args, {"scale": 2.0}), with_kwargs=True)
    gm = repl_fx.capture(model, (x,))
    assert gm.meta["capture"].tracer == "torch.export" and torch.equal(gm(x), model(x))

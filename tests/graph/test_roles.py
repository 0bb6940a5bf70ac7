"""Tests for repl_fx.graph.roles: one spelling for each role, and views by their schema."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._ops import OpOverload

import repl_fx
from repl_fx.graph import roles
from repl_fx.graph.roles import is_view
from repl_fx.graph.runtime import select_mode
from tests.nets import ConvNet, TokenNet, images, tokens


def test_every_role_is_one_of_aten_operators() -> None:
    tables = [value for name, value in vars(roles).items() if name.isupper() and not isinstance(value, int)]
    by_dimensions = (roles.CONVOLUTIONS, roles.CONVOLUTIONS_PADDED_BY_WORD)
    for table in tables:
        keyed = any(table is one for one in by_dimensions)
        entries = [table] if isinstance(table, OpOverload) else table.values() if keyed else table
        assert all(isinstance(entry, OpOverload) for entry in entries), table


class Calls(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Any:
        return self.function(x * self.scale)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x.reshape(-1, 2, 4), True),
        (lambda x: x.unflatten(1, (2, 4)), True),
        (lambda x: x.split(4, 1)[1], True),
        (lambda x: x.t().contiguous(), True),
        (lambda x: x.repeat_interleave(2, 1), True),
        (lambda x: x.to(torch.float64), False),
        (lambda x: F.dropout(x, 0.1), False),
        (lambda x: x.relu_(), False),
        (lambda x: x.softmax(-1), False),
    ],
)
def test_views(function: Callable[[Tensor], Any], expected: bool) -> None:
    gm = repl_fx.capture(Calls(function), (torch.randn(4, 8),))
    (product,) = gm.graph.find_nodes(op="call_function", target=torch.ops.aten.mul.Tensor)
    behind = [node for node in gm.graph.nodes if node.op == "call_function" and product < node]
    made = [node for node in behind if node.target is not select_mode]
    assert made and all(is_view(node) for node in made) is expected


@pytest.mark.parametrize("key", ["identity", "blend", "coarse", "narrow", "slim", "bottleneck", "reuse"])
def test_surrogates_speak_the_dialect_of_the_graph(key: str) -> None:
    model, x = (ConvNet(), images()) if key in ("slim", "coarse") else (TokenNet(), tokens())
    gm = repl_fx.transform(model, (x,), surrogate=key).graph_module
    called = {node.target for node in gm.graph.nodes if node.op == "call_function"}
    others = {target for target in called if not isinstance(target, OpOverload)}
    assert {str(target.__module__).split(".")[0] for target in others} <= {"repl_fx", "_operator"}

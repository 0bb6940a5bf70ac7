"""What the optimizer of the exporter may not take away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from repl_fx.export import export_onnx, verify_onnx


class Net(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x / (x + 1e-15),
        lambda x: (x - 1e-9) * 1e9,
        lambda x: 1e-12 + x,
        lambda x: x + torch.tensor(1e-6) * 1e-6,
        lambda x: torch.add(x, 1e-3, alpha=1e-8),
    ],
    ids=["an epsilon", "a difference", "on the left", "computed", "alpha"],
)
def test_a_number_of_nearly_nothing_is_added(function: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    net, x = Net(function), torch.zeros(2, 3)
    path = export_onnx(net, tmp_path / "m.onnx", (x,))
    assert verify_onnx(net, path, (x,))
    assert all(node.domain == "" for node in onnx.load(path).graph.node)


@pytest.mark.parametrize(
    ("function", "kind"), [(lambda x: x * 1.000003 - x, "Mul"), (lambda x: x / 1.000003 - x, "Div")], ids=["Mul", "Div"]
)
def test_a_factor_of_nearly_one_is_kept(function: Callable[[Tensor], Tensor], kind: str, tmp_path: Path) -> None:
    net, x = Net(function), torch.rand(2, 3) + 1
    path = export_onnx(net, tmp_path / "m.onnx", (x,))
    assert verify_onnx(net, path, (x,))
    assert [node.op_type for node in onnx.load(path).graph.node] == [kind, "Sub"]


def test_nothing_is_added_where_nothing_is(tmp_path: Path) -> None:
    net, x = Net(lambda x: ((x + 0.0) * 1.0).tanh()), torch.randn(2, 3)
    path = export_onnx(net, tmp_path / "m.onnx", (x,))
    assert [node.op_type for node in onnx.load(path).graph.node] == ["Tanh"]

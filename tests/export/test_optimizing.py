"""What the optimizer of the exporter may not take away."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnxscript import optimizer
from onnxscript.rewriter import RewriteRule
from torch import Tensor, nn

from repl_fx.export import export_onnx
from repl_fx.export.optimizing import _drop_zero_biases, _keep_weights, _register_strays, _simplify
from tests.exporting import Exported


class Net(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Product(nn.Module):
    """The product of a weight and of what is in another order."""

    def __init__(self, order: tuple[int, ...], left: bool) -> None:
        super().__init__()
        self.order, self.left = order, left
        self.weight = nn.Parameter(torch.randn(5, 5))

    def forward(self, x: Tensor) -> Tensor:
        turned = x.permute(self.order)
        return turned @ self.weight if self.left else self.weight @ turned


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
    exported = Exported(net, tmp_path / "m.onnx", (x,))
    assert exported.verify()
    assert all(node.domain == "" for node in onnx.load(exported.path).graph.node)


@pytest.mark.parametrize(
    ("function", "kind"), [(lambda x: x * 1.000003 - x, "Mul"), (lambda x: x / 1.000003 - x, "Div")], ids=["Mul", "Div"]
)
def test_a_factor_of_nearly_one_is_kept(function: Callable[[Tensor], Tensor], kind: str, tmp_path: Path) -> None:
    net, x = Net(function), torch.rand(2, 3) + 1
    exported = Exported(net, tmp_path / "m.onnx", (x,))
    assert exported.verify()
    assert [node.op_type for node in onnx.load(exported.path).graph.node] == [kind, "Sub"]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.clamp(0, 1).clamp(2, 3),
        lambda x: x.clamp_max(1).clamp_min(2),
        lambda x: x.clamp(-3, -1).relu(),
        lambda x: x.clamp_max(-1).relu(),
    ],
    ids=["apart", "swapped", "below zero", "at most below zero"],
)
def test_clips_of_bounds_that_have_nothing_in_common_are_not_made_one(
    function: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    assert Exported(Net(function), tmp_path / "m.onnx", (torch.randn(2, 3),)).verify()


@pytest.mark.parametrize("order", [(1, 0, 2), (1, 2, 0), (0, 2, 1), (1, 2, 0, 3)])
@pytest.mark.parametrize("left", [True, False])
def test_a_product_of_what_is_transposed_loads_in_half_precision(
    order: tuple[int, ...], left: bool, tmp_path: Path
) -> None:
    net = Product(order, left).half()
    x = torch.randn(5, 5, 5, 5)[: 5 if len(order) == 4 else 1].squeeze(0).half()
    exported = Exported(net, tmp_path / "m.onnx", (x,))
    path = exported.path
    # In a process of its own: it is one that ONNX Runtime would end.
    load = f"import onnxruntime; onnxruntime.InferenceSession({str(path)!r}, providers=['CPUExecutionProvider'])"
    assert subprocess.run([sys.executable, "-c", load], check=False).returncode == 0
    assert exported.verify()
    parted = [node.op_type for node in onnx.load(path).graph.node].count("Squeeze")
    assert parted == (order[:-2] == tuple(range(1, len(order) - 1)))


@pytest.mark.parametrize(
    ("pool", "is_parted"),
    [
        (nn.MaxPool2d(3, 2), True),
        (nn.MaxPool2d(3, 2, padding=1, ceil_mode=True), True),
        (nn.AvgPool2d(3, 2, padding=1, ceil_mode=True), True),
        (nn.AvgPool2d(3, 2, padding=1), False),
    ],
)
def test_zeros_around_what_is_pooled_are_no_padding_of_the_pool(
    pool: nn.Module, is_parted: bool, tmp_path: Path
) -> None:
    x = -1 - torch.rand(2, 3, 9, 10)
    exported = Exported(nn.Sequential(nn.ZeroPad2d(1), pool), tmp_path / "m.onnx", (x,))
    assert exported.verify()
    assert any(node.op_type == "Squeeze" for node in onnx.load(exported.path).graph.node) == is_parted


def test_only_zeros_are_taken_off_a_convolution() -> None:
    float_ = ir.DataType.FLOAT
    x, weight, size = (ir.Value(name=name, type=ir.TensorType(float_)) for name in ("x", "weight", "size"))
    nodes = []
    for number in (0.0, 2.0):
        constant = ir.node("Constant", [], {"value": ir.tensor(np.array(number, np.float32))})
        spread = ir.node("Expand", [constant.outputs[0], size])
        nodes += [constant, spread, ir.node("Conv", [x, weight, spread.outputs[0]])]
    graph = ir.Graph([x, weight, size], [node.outputs[0] for node in nodes[2::3]], nodes=nodes, opset_imports={"": 18})
    _drop_zero_biases(graph)
    assert [len(node.inputs) for node in graph if node.op_type == "Conv"] == [2, 3]


def test_every_constant_that_was_lost_is_given_back() -> None:
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT))
    known, *lost = (ir.val(name, const_value=ir.tensor([1.0])) for name in ("c", "c", None, "c"))
    nodes, total = [], x
    for value in (known, *lost):
        nodes.append(ir.node("Add", [total, value]))
        total = nodes[-1].outputs[0]
    graph = ir.Graph([x], [total], nodes=nodes, initializers=[known], opset_imports={"": 18})
    _register_strays(ir.Model(graph, ir_version=10))
    assert set(graph.initializers) == {"c", "c_1", "v", "c_2"}
    assert {id(value) for value in graph.initializers.values()} == {id(value) for value in (known, *lost)}


def test_nothing_is_added_where_nothing_is(tmp_path: Path) -> None:
    net, x = Net(lambda x: ((x + 0.0) * 1.0).tanh()), torch.randn(2, 3)
    path = export_onnx(net, tmp_path / "m.onnx", (x,))
    assert [node.op_type for node in onnx.load(path).graph.node] == ["Tanh"]


class Rewritable(nn.Module):
    """Much that a rule of the optimizer takes away."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(nn.functional.pad(x, (1, 1, 1, 1)))) * 1.0 + 0.0
        x = x.relu().relu().clamp(0.1, 0.9)
        x = x.flatten(2).transpose(1, 2).transpose(1, 2).transpose(1, 2)
        first, second = x[..., :2], x[..., 2:]
        x = torch.cat([second, first], -1).to(torch.float64).to(torch.float32)
        x = x.unsqueeze(0).unsqueeze(0).squeeze(0).squeeze(0) - 0.0
        made: Tensor = self.linear(x).reshape(-1, 2, 8).reshape(-1, 4) / 1.0
        return made


# Of torch 2.11's own exporter.
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_rules_that_are_tried_at_their_operators_do_what_all_of_them_did(monkeypatch: pytest.MonkeyPatch) -> None:
    exported = torch.onnx.export(Rewritable().eval(), (torch.randn(2, 3, 4, 4),), verbose=False, optimize=False)
    assert exported is not None
    wanted = ir.from_proto(ir.to_proto(exported.model))
    optimizer.optimize_ir(wanted, should_fold=_keep_weights)
    tried = []
    plain = RewriteRule.try_rewrite

    def watched(self: RewriteRule, model: ir.Model, graph: ir.Graph, node: ir.Node, **settings: Any) -> Any:
        tried.append((self, node.op_type))
        return plain(self, model, graph, node, **settings)

    monkeypatch.setattr(RewriteRule, "try_rewrite", watched)
    made = ir.from_proto(ir.to_proto(exported.model))
    before = len(list(made.graph))
    _simplify(made)
    assert ir.to_proto(made) == ir.to_proto(wanted)
    assert len(list(made.graph)) < before
    operators = dict(tried)
    assert tried and all(operators[rule] == operator for rule, operator in tried)

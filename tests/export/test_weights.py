"""Weights: those of the file, and those of the module."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, fx, nn

from repl_fx.errors import ExportError
from repl_fx.export import export_onnx, verify_onnx
from repl_fx.export.weights import other_weights, weights_of, with_weights
from tests.export.subjects import X, perturbed


def test_a_mismatch_is_blamed_on_the_weight_that_differs(exported: tuple[fx.GraphModule, Path], tmp_path: Path) -> None:
    check = verify_onnx(exported[0], perturbed(exported[1], tmp_path, "second.weight", 0.1), (X,), per_layer=True)
    assert not check
    assert check.notes == ("weights in the file that are not the module's: second.weight",)
    assert "second.weight" in check.summary()


def test_another_graph_in_the_file_is_told_from_other_weights(
    exported: tuple[fx.GraphModule, Path], tmp_path: Path
) -> None:
    model = onnx.load(str(exported[1]))
    next(node for node in model.graph.node if node.op_type == "Tanh").op_type = "Sigmoid"
    onnx.save(model, str(tmp_path / "other.onnx"))
    check = verify_onnx(exported[0], tmp_path / "other.onnx", (X,), per_layer=True)
    assert not check
    assert all(layer.passed for layer in check.layers)
    assert "the file holds another graph" in check.summary()


class Tied(nn.Module):
    """Weights that are tied, of two precisions, and one that the exporter merges with the normalisation after it."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.merged = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("table", torch.randn(4, 4).bfloat16())

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(torch.relu(self.first(x))).bfloat16() @ self.table
        result: Tensor = self.norm(self.merged(y.float()))
        return result


def test_weights_of_a_file_are_found_and_put_in(tmp_path: Path) -> None:
    gm, x = fx.symbolic_trace(Tied()).train(), torch.randn(8, 4)
    gm(x)
    gm.eval()
    path = export_onnx(gm, tmp_path / "m.onnx", (x,))
    assert other_weights(path, weights_of(path)) == {}
    assert with_weights(gm, {}, {}) is gm
    tied = gm.get_parameter("first.weight").clone()

    with torch.no_grad():
        for tensor in (*gm.parameters(), *gm.buffers()):
            tensor.mul_(2)
    fresh = weights_of(export_onnx(gm, tmp_path / "fresh.onnx", (x,)))
    found = other_weights(path, fresh)
    assert {"table", "merged.weight"} < set(found)
    restored = with_weights(gm, found, fresh)
    assert torch.equal(restored.get_parameter("first.weight"), tied)
    assert restored.get_parameter("first.weight") is restored.get_parameter("second.weight")
    assert torch.equal(gm.get_parameter("first.weight"), 2 * tied)
    for left in ("merged.weight", "norm.weight"):
        assert torch.equal(restored.get_parameter(left), gm.get_parameter(left))
    assert torch.equal(restored.get_buffer("table"), gm.get_buffer("table"))


def test_weights_of_another_shape_are_found_and_not_put_in(tmp_path: Path) -> None:
    x = torch.randn(2, 4)
    path = export_onnx(nn.Sequential(nn.Linear(4, 3)), tmp_path / "m.onnx", (x,))
    gm = fx.symbolic_trace(nn.Sequential(nn.Linear(4, 5)))
    fresh = weights_of(export_onnx(gm, tmp_path / "fresh.onnx", (x,)))
    found = other_weights(path, fresh)
    assert set(found) == {"0.weight", "0.bias"}
    assert torch.equal(with_weights(gm, found, fresh)(x), gm(x))


def test_weights_that_cannot_be_compared_are_a_note(
    exported: tuple[fx.GraphModule, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ExportError("no translation\nmore")

    monkeypatch.setattr("repl_fx.export.verify._exported_weights", refuse)
    check = verify_onnx(exported[0], exported[1], (X,), per_layer=True)
    assert check and check.layers
    assert check.notes == ("the weights cannot be compared: no translation",)

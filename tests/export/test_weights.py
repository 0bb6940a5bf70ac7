"""Weights: those of the file, and those of the module."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, fx, nn

from repl_fx.errors import ExportError
from repl_fx.export import export_onnx, verify_onnx
from repl_fx.export.pairing import constants_of
from repl_fx.export.weights import read_model, with_weights
from tests.export.subjects import LOOSE, X, perturbed


def test_one_element_that_outputs_do_not_show_is_found(exported: tuple[fx.GraphModule, Path], tmp_path: Path) -> None:
    check = verify_onnx(exported[0], perturbed(exported[1], tmp_path, "second.weight", 1e-4, 5), (X,), **LOOSE)
    assert check.same_outputs and not check.weights and not check
    (altered,) = check.weights.altered
    assert (altered.name, altered.numbers, altered.different) == ("second.weight", 1024, 1)
    assert check.summary().startswith("not equivalent: the outputs agree, but there are weights in the file that are ")
    assert "not the module's: second.weight: 1 of 1024 numbers, by up to " in check.summary()
    data = check.to_json()
    assert (data["equivalent"], data["outputs_equal"], data["weights_equal"]) == (False, True, False)
    assert data["weights"]["altered"][0]["name"] == "second.weight"


def test_an_untouched_file_says_how_much_was_compared(exported: tuple[fx.GraphModule, Path]) -> None:
    check = verify_onnx(*exported, (X,))
    assert check and check.weights.in_place and not check.weights.unmatched and check.weights.equal >= 6
    assert "weights and constants are the module's" in check.summary()
    assert check.to_json()["weights_equal"] is True


def test_a_mismatch_is_blamed_on_the_weight_that_differs(exported: tuple[fx.GraphModule, Path], tmp_path: Path) -> None:
    check = verify_onnx(exported[0], perturbed(exported[1], tmp_path, "second.weight", 0.1), (X,), per_layer=True)
    assert not check
    assert [one.name for one in check.weights.altered] == ["second.weight"]
    assert "weights in the file that are not the module's: second.weight" in check.summary()


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


def test_weights_of_a_file_are_put_in(tmp_path: Path) -> None:
    gm, x = fx.symbolic_trace(Tied()).train(), torch.randn(8, 4)
    gm(x)
    gm.eval()
    path = export_onnx(gm, tmp_path / "m.onnx", (x,))
    assert with_weights(gm, {}, {}) is gm
    tied = gm.get_parameter("first.weight").clone()

    with torch.no_grad():
        for tensor in (*gm.parameters(), *gm.buffers()):
            tensor.mul_(2)
    found = constants_of(read_model(path))
    fresh = constants_of(read_model(export_onnx(gm, tmp_path / "fresh.onnx", (x,))))
    assert {"table", "merged.weight"} < found.keys()
    restored = with_weights(gm, {name: found[name] for name in fresh}, fresh)
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
    check = verify_onnx(gm, path, (x,))
    assert {one.name for one in check.weights.altered} == {"0.weight", "0.bias"}
    fresh = constants_of(read_model(export_onnx(gm, tmp_path / "fresh.onnx", (x,))))
    assert torch.equal(with_weights(gm, constants_of(read_model(path)), fresh)(x), gm(x))


def test_a_module_that_cannot_be_exported_again_is_compared_by_its_own_weights(
    exported: tuple[fx.GraphModule, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ExportError("no translation")

    monkeypatch.setattr("repl_fx.export.verifying.export_program", refuse)
    check = verify_onnx(exported[0], exported[1], (X,))
    assert check.notes == ("weights compared with the module's own, as it cannot be exported (no translation)",)
    assert "head.weight" not in {one.name for one in check.weights.altered} and not check.weights.in_place
    wrong = perturbed(exported[1], tmp_path, "head.weight", 0.01)
    check = verify_onnx(exported[0], wrong, (X,), **LOOSE)
    assert "head.weight" in {one.name for one in check.weights.altered}

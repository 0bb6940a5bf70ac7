"""Weights: those of the file, and those of the module."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from onnxruntime.quantization import quantize_dynamic
from torch import Tensor, fx, nn

from repl_fx.errors import ExportError
from repl_fx.export import export_onnx, verify_onnx
from repl_fx.export.weights import constants_of, read_model, with_weights
from tests.export.subjects import ConvNet, X, perturbed

Change = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]
LOOSE: Any = {"atol": 100.0}


def edited(path: Path, directory: Path, name: str, change: Change) -> Path:
    """A copy of the file with another tensor: an initializer, or what a node of this name holds."""
    model = onnx.load(str(path))
    held = [a.t for node in model.graph.node if name in node.output for a in node.attribute]
    tensor = next(t for t in (*model.graph.initializer, *held) if t.name == name or t in held)
    value = change(numpy_helper.to_array(tensor).copy())
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), tensor.name))
    onnx.save(model, str(directory / "edited.onnx"))
    return directory / "edited.onnx"


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


def test_weights_that_took_each_others_place_are_found(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    path = export_onnx(net, tmp_path / "m.onnx", (torch.randn(2, 8),))
    model = onnx.load(str(path))
    # By what reads them: each keeps its name and its value.
    nodes = [node for node in model.graph.node if node.op_type == "Gemm"]
    nodes[0].input[2], nodes[1].input[2] = nodes[1].input[2], nodes[0].input[2]
    onnx.save(model, str(tmp_path / "swapped.onnx"))
    check = verify_onnx(net, tmp_path / "swapped.onnx", (torch.randn(2, 8),), **LOOSE)
    assert {one.source for one in check.weights.altered} == {"0.bias", "2.bias"}


class Constants(nn.Module):
    """An epsilon, a scale, and a table that the code makes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(8, eps=1e-5), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(x)) * 0.37 + torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]])  # type: ignore[no-any-return]


def test_constants_and_attributes_of_nodes_count(tmp_path: Path) -> None:
    net, x = Constants(), torch.randn(2, 8)
    path = export_onnx(net, tmp_path / "m.onnx", (x,))
    constants = {n: v for n, v in constants_of(read_model(path)).items() if n.startswith("val") or v.size == 8}
    scale = next(name for name, value in constants.items() if value.size == 1 and np.isclose(value, 0.37))
    check = verify_onnx(net, edited(path, tmp_path, scale, lambda value: value * np.float32(1.001)), (x,), **LOOSE)
    assert [one.name for one in check.weights.altered] == [scale]

    model = onnx.load(str(path))
    norm = next(node for node in model.graph.node if node.op_type == "LayerNormalization")
    next(a for a in norm.attribute if a.name == "epsilon").f = 2e-5
    onnx.save(model, str(tmp_path / "epsilon.onnx"))
    check = verify_onnx(net, tmp_path / "epsilon.onnx", (x,))
    assert check.same_outputs and ".epsilon" in check.weights.altered[0].name


def optimised(path: Path, target: Path) -> Path:
    """The file as ONNX Runtime's own optimiser writes it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return target


def made_over(kind: str, net: nn.Module, x: Tensor, directory: Path) -> Path:
    """A file of the module by another exporter, or a tool; its outputs are called `output`."""
    path = directory / f"{kind}.onnx"
    names: Any = {"input_names": ["x"], "output_names": ["output"]}
    if kind == "optimised":
        return optimised(export_onnx(net, directory / "own.onnx", (x,)), path)
    if kind == "torchscript":
        torch.onnx.export(net, (x,), str(path), dynamo=False, **names)
    elif kind == "dynamo":
        torch.onnx.export(net, (x,), str(path), dynamo=True, verbose=False, **names)
    elif kind == "quantised":
        quantize_dynamic(made_over("torchscript", net, x, directory), path)
    return path


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = ConvNet()
        self.up, self.norm, self.down = nn.Linear(5, 24), nn.LayerNorm(24), nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        # Over three dimensions, so that exporters write a product with a transposed weight.
        y = self.conv(x)[:, None].expand(-1, 3, -1)
        return self.down(self.norm(torch.nn.functional.gelu(self.up(y))))  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["torchscript", "dynamo", "optimised", "quantised"])
def test_weights_that_another_exporter_made_over_pass_and_altered_ones_do_not(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Plain(), torch.randn(2, 3, 6, 6)
    net(torch.randn(64, 3, 6, 6))
    net.eval()
    path = made_over(kind, net, x, tmp_path)
    check = verify_onnx(net, path, (x,), batches=[2], **LOOSE)
    assert check, check.summary()
    large = {name: value for name, value in constants_of(read_model(path)).items() if value.size >= 24}
    assert len(large) >= 5 and not large.keys() & set(check.weights.unmatched)
    for name in large:

        def change(value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            flat = value.reshape(-1)
            flat[3] += 3 if value.dtype.kind in "iu" else np.float32(0.01)
            return value

        check = verify_onnx(net, edited(path, tmp_path, name, change), (x,), batches=[2], **LOOSE)
        assert [one.name for one in check.weights.altered] == [name], check.summary()


def test_lost_precision_is_found_and_a_file_in_half_precision_is_not_to_blame(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(8, 8), nn.Tanh()), torch.randn(2, 8)
    path = export_onnx(net, tmp_path / "m.onnx", (x,))

    def halved(value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return value.astype(np.float16).astype(np.float32)

    assert not verify_onnx(net, edited(path, tmp_path, "0.weight", halved), (x,), **LOOSE)
    # Half weights, cast to what the nodes take.
    model = ir.load(path)
    for value in list(model.graph.initializers.values()):
        assert value.const_value is not None and value.name is not None
        small = ir.tensor(value.const_value.numpy().astype(np.float16), name=f"{value.name}")
        cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT})
        value.replace_all_uses_with(cast.outputs[0], replace_graph_outputs=False)
        cast.replace_input_with(0, value)
        value.const_value, value.dtype = small, ir.DataType.FLOAT16
        model.graph.insert_before(model.graph[0], cast)
    ir.save(model, tmp_path / "half.onnx")
    check = verify_onnx(net, tmp_path / "half.onnx", (x,), **LOOSE)
    assert check and check.weights.equal == 2 and "its graph is not that of a fresh export" in check.summary()
    wrong = edited(tmp_path / "half.onnx", tmp_path, "0.weight", lambda value: value * np.float16(1.01))
    assert not verify_onnx(net, wrong, (x,), **LOOSE)


def test_what_no_tensor_explains_is_counted_and_named(tmp_path: Path) -> None:
    net, x = nn.Sequential(nn.Linear(8, 8)), torch.randn(2, 8)
    model = onnx.load(str(export_onnx(net, tmp_path / "m.onnx", (x,))))
    zeros = numpy_helper.from_array(np.full((1, 8), 1e-9, np.float32), "mystery")
    model.graph.initializer.append(zeros)
    last = model.graph.node[-1]
    name, last.output[0] = last.output[0], "before"
    model.graph.node.append(onnx.helper.make_node("Add", ["before", "mystery"], [name]))
    onnx.save(model, str(tmp_path / "more.onnx"))
    check = verify_onnx(net, tmp_path / "more.onnx", (x,))
    assert check and check.weights.unmatched == ("mystery",) and not check.weights.in_place
    assert "1 that cannot be matched, for which the outputs alone speak: mystery" in check.summary()


def test_what_is_computed_may_be_rounded_otherwise_and_what_is_stored_may_not(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = ConvNet(), torch.randn(2, 3, 6, 6)
    net(torch.randn(64, 3, 6, 6))
    path = export_onnx(net.eval(), tmp_path / "m.onnx", (x,))

    def nudged(value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.asarray(np.nextafter(value, np.float32(np.inf)))

    # Merged with the norm behind it, under its own name.
    assert verify_onnx(net, edited(path, tmp_path, "conv.weight", nudged), (x,))
    assert not verify_onnx(net, edited(path, tmp_path, "head.weight", nudged), (x,))
    assert not verify_onnx(net, perturbed(path, tmp_path, "conv.weight", 1e-4, 7), (x,))


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
        raise ExportError("no translation\nmore")

    monkeypatch.setattr("repl_fx.export.verify.export_program", refuse)
    check = verify_onnx(exported[0], exported[1], (X,))
    assert check.notes == ("weights compared with the module's own, as it cannot be exported (no translation)",)
    assert "head.weight" not in {one.name for one in check.weights.altered} and not check.weights.in_place
    wrong = perturbed(exported[1], tmp_path, "head.weight", 0.01)
    check = verify_onnx(exported[0], wrong, (X,), **LOOSE)
    assert "head.weight" in {one.name for one in check.weights.altered}

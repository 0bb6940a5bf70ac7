"""Files of other exporters: where their tensors come from."""

from __future__ import annotations

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
from torch import Tensor, nn

from repl_fx.export import export_onnx, verify_onnx
from repl_fx.export.pairing import constants_of
from repl_fx.export.weights import read_model
from tests.export.subjects import LOOSE, ConvNet, edited
from tests.exporting import Exported


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


@pytest.mark.slow
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
    # In the operator set of the file, as for that verification.
    exported = Exported(net, tmp_path / "fresh.onnx", (x,), opset=read_model(path).opset_imports[""])
    large = {name: value for name, value in constants_of(read_model(path)).items() if value.size >= 24}
    assert len(large) >= 5 and not large.keys() & set(check.weights.unmatched)
    for name in large:

        def change(value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            flat = value.reshape(-1)
            flat[3] += 3 if value.dtype.kind in "iu" else np.float32(0.01)
            return value

        check = exported.verify(path=edited(path, tmp_path, name, change), batches=[2], **LOOSE)
        assert [one.name for one in check.weights.altered] == [name], check.summary()


@pytest.mark.slow
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

"""Graphs side by side: what stands in the place of what."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from repl_fx.export import export_onnx, verify_onnx
from repl_fx.export.pairing import constants_of
from repl_fx.export.weights import read_model
from tests.export.subjects import LOOSE, edited


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


@pytest.mark.slow
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

"""The network of `subjects` as a graph, with its export."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import fx

from repl_fx.export import export_onnx
from tests.export.subjects import Net, X


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[fx.GraphModule, Path]:
    torch.manual_seed(0)
    gm = fx.symbolic_trace(Net())
    gm(torch.randn(64, 16))
    return gm, export_onnx(gm, tmp_path_factory.mktemp("net") / "net.onnx", (X,))

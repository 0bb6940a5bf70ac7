"""Differences of tensors: rounding is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from repl_fx.export import export_onnx, verify_onnx
from tests.export.subjects import ConvNet, edited, perturbed


@pytest.mark.slow
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

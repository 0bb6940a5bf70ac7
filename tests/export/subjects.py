"""Small networks that the tests of export share, and files that are wrong by a little."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 32)
        self.norm = nn.BatchNorm1d(32)
        self.second = nn.Linear(32, 32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> dict[str, Tensor | None]:
        y = torch.relu(self.norm(self.first(x)))
        y = y + torch.tanh(self.second(y))
        logits = self.head(y)
        return {"logits": logits, "label": logits.argmax(-1), "positive": logits > 0, "cache": None}


X = torch.randn(4, 16, generator=torch.Generator().manual_seed(3))


def perturbed(path: Path, directory: Path, name: str, change: float, entry: int | None = None) -> Path:
    """A copy of the file with one weight, or one entry of it, scaled by 1 + change."""
    model = onnx.load(str(path))
    tensor = next(t for t in model.graph.initializer if t.name == name)
    value = onnx.numpy_helper.to_array(tensor).copy()
    value.reshape(-1)[slice(None) if entry is None else entry] *= 1 + change
    tensor.CopyFrom(onnx.numpy_helper.from_array(value.astype(np.float32), name))
    onnx.save(model, str(directory / "perturbed.onnx"))
    return directory / "perturbed.onnx"


# Verification by weights alone.
LOOSE: Any = {"atol": 100.0}


def edited(
    path: Path, directory: Path, name: str, change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]
) -> Path:
    """A copy of the file with another tensor: an initializer, or what a node of this name holds."""
    model = onnx.load(str(path))
    held = [a.t for node in model.graph.node if name in node.output for a in node.attribute]
    tensor = next(t for t in (*model.graph.initializer, *held) if t.name == name or t in held)
    value = change(onnx.numpy_helper.to_array(tensor).copy())
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(value), tensor.name))
    onnx.save(model, str(directory / "edited.onnx"))
    return directory / "edited.onnx"


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn(self.conv(x)))
        result: Tensor = self.head(self.drop(y.mean((2, 3))))
        return result

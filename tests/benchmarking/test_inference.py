"""A module by each of the runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import repl_fx
from repl_fx.benchmarking.inference import COMPILED, EAGER, ONNX, Prepared
from repl_fx.benchmarking.model_variants import Variant
from repl_fx.running.example_inputs import ExampleInputs

CPU = torch.device("cpu")


def _prepared(model: nn.Module, place: Path, graph: Any = None) -> Prepared:
    return Prepared(Variant("source", model, model, graph), ExampleInputs((torch.randn(2, 8),)), CPU, place)


def _net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 3))


def test_all_runtimes_compute_the_same_and_the_module_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = _net().train(), torch.randn(3, 8)
    prepared = _prepared(model, tmp_path, repl_fx.capture(model, (torch.randn(2, 8),)))
    asked: list[dict[str, Any]] = []
    real = torch.compile

    def compiled(module: nn.Module, **settings: Any) -> Any:
        asked.append(settings)
        return real(module, backend="eager", **settings)

    monkeypatch.setattr(torch, "compile", compiled)
    made: dict[str, Any] = {name: prepared.call(name, ExampleInputs((x,)))() for name in (EAGER, COMPILED, ONNX)}
    torch.compiler.reset()
    expected = model.eval()(x)
    assert torch.equal(made[EAGER], expected) and torch.equal(made[COMPILED], expected)
    np.testing.assert_allclose(made[ONNX]["output"], expected.detach().numpy(), rtol=1e-5, atol=1e-6)
    assert asked == [{"dynamic": False}] and not made[EAGER].requires_grad
    assert prepared.module is not model


def test_a_refused_export_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def refuse(*_: Any) -> None:
        tried.append(1)
        raise repl_fx.ExportError("no translation")

    monkeypatch.setattr("repl_fx.benchmarking.inference.export_onnx", refuse)
    prepared = _prepared(_net(), tmp_path, repl_fx.capture(_net(), (torch.randn(2, 8),)))
    for _ in range(2):
        with pytest.raises(repl_fx.ExportError, match="no translation"):
            prepared.call(ONNX, ExampleInputs((torch.randn(1, 8),)))
    assert len(tried) == 1


def test_a_model_in_parts_has_no_onnx(tmp_path: Path) -> None:
    with pytest.raises(repl_fx.BadInput, match="captured in parts"):
        _prepared(_net(), tmp_path).call(ONNX, ExampleInputs((torch.randn(1, 8),)))

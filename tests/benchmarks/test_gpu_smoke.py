"""benchmarks/gpu_smoke.py: the checks hold on CUDA, and can fail."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def smoke() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_smoke", BENCHMARKS / "gpu_smoke.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def subjects(smoke: ModuleType) -> dict[tuple[str, str], Any]:
    """Models that were transformed already, by name and device."""
    return {}


def run(smoke: ModuleType, subjects: dict[tuple[str, str], Any], model: str, device: str, check: str) -> Any:
    subject = subjects.setdefault((model, device), smoke.Subject(model, device))
    return smoke.run_check(subject, check)


@pytest.mark.gpu
@pytest.mark.parametrize("check", ["move", "capture", "random", "float32", "bfloat16", "fold", "save", "export"])
@pytest.mark.parametrize("model", ["resnet32", "gpt"])
def test_on_cuda(smoke: ModuleType, subjects: dict[tuple[str, str], Any], model: str, check: str) -> None:
    row = run(smoke, subjects, model, "cuda", check)
    assert row.status == "pass", row.detail


@pytest.mark.slow
@pytest.mark.parametrize("check", ["capture", "bfloat16", "checkpoint", "fold", "save"])
def test_the_same_checks_on_the_cpu(smoke: ModuleType, subjects: dict[tuple[str, str], Any], check: str) -> None:
    row = run(smoke, subjects, "gpt", "cpu", check)
    assert row.status == "pass", row.detail


def test_skips_what_needs_two_devices(smoke: ModuleType, subjects: dict[tuple[str, str], Any]) -> None:
    row = run(smoke, subjects, "gpt", "cpu", "move")
    assert row.status == "skip" and "second device" in row.detail


@pytest.mark.slow
def test_a_module_that_computes_something_else_fails(smoke: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    fold = smoke.repl_fx.fold

    def wrong_fold(gm: nn.Module) -> nn.Module:
        folded: nn.Module = fold(gm)
        with torch.no_grad():
            for parameter in folded.parameters():
                # A new tensor: kept parameters are shared with the graph that was folded.
                parameter.data = parameter.data * 1.01
        return folded

    monkeypatch.setattr(smoke.repl_fx, "fold", wrong_fold)
    row = smoke.run_check(smoke.Subject("resnet32", "cpu"), "fold")
    assert row.status == "fail" and "allowed" in row.detail


def test_an_error_is_a_failed_check(smoke: ModuleType) -> None:
    row = smoke.run_check(smoke.Subject("no_such_model", "cpu"), "capture")
    assert row.status == "fail" and "SourceError" in row.detail


@pytest.mark.parametrize("nothing", [float("nan"), float("inf")])
def test_nan_is_never_close(smoke: ModuleType, nothing: float) -> None:
    with pytest.raises(smoke.Failed):
        smoke._within("outputs", smoke._gap(torch.full((3,), nothing), torch.ones(3)), 1.0)


def test_says_in_one_line_that_there_is_no_device(smoke: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert smoke.main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and "cuda" in captured.err

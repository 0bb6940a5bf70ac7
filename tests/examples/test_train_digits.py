"""examples/train_digits.py: both models learn the digits, from the same start."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_digits", EXAMPLES / "train_digits.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_both_models_learn(example: ModuleType) -> None:
    original, rewritten = example.compare(epochs=4)
    assert original.accuracy > 0.9 and rewritten.accuracy > 0.9
    assert rewritten.parameters < 0.8 * original.parameters
    assert original.epoch_seconds > 0.0 and rewritten.epoch_seconds > 0.0


@pytest.mark.slow
def test_one_seed_gives_one_result(example: ModuleType) -> None:
    first, second = (example.compare(epochs=1, seed=3) for _ in range(2))
    assert [one.accuracy for one in first] == [one.accuracy for one in second]


def test_images_fit_what_the_model_takes(example: ModuleType) -> None:
    rows = example.digits_for(torch.zeros(2, 64))
    images = example.digits_for(torch.zeros(2, 3, 8, 8))
    assert rows.train_inputs.shape == (1347, 64) and rows.test_inputs.shape == (450, 64)
    assert images.train_inputs.shape == (1347, 3, 8, 8)
    assert torch.equal(images.train_inputs[:, 0].flatten(1), rows.train_inputs)
    assert torch.equal(images.test_classes, rows.test_classes)
    assert rows.train_inputs.min() >= -1.0 and rows.train_inputs.max() <= 1.0


def test_refuses_inputs_of_another_kind(example: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"inputs of shape \(2, 32\)"):
        example.digits_for(torch.zeros(2, 32))


@pytest.mark.slow
def test_prints_a_table(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    example.main(["--epochs", "1"])
    printed = capsys.readouterr().out
    assert "original" in printed and "3 blocks replaced" in printed and "2,127,114" in printed

"""The figures of a model on held-out data."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from repl_fx.errors import BadInput
from repl_fx.training.data.data_set import Data, Tensors
from repl_fx.training.data.targets import no_targets
from repl_fx.training.evaluation import evaluate
from repl_fx.training.train_config import TrainConfig
from tests.training.runs import Net, pictures

CONFIG = TrainConfig(batch_size=8, device="cpu")


def bare() -> Data:
    """The pictures without their classes."""
    data = pictures()
    assert isinstance(data.train, Tensors) and isinstance(data.test, Tensors)
    train, test = (Tensors(part.inputs, no_targets(part.inputs)) for part in (data.train, data.test))
    return replace(data, train=train, test=test, classes=0, has_targets=False)


def test_figures_are_those_of_all_held_out_inputs() -> None:
    torch.manual_seed(0)
    model, data = Net(), pictures()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = evaluate(model, data, CONFIG)
    assert isinstance(data.test, Tensors)
    with torch.no_grad():
        logits = model.eval()((data.test.main.float() / 255 - 0.3) / 0.3)
    assert found["accuracy"] == pytest.approx(float((logits.argmax(1) == data.test.targets).float().mean()))
    expected = torch.nn.functional.cross_entropy(logits, data.test.targets)
    assert found["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def test_without_targets_figures_are_against_the_original() -> None:
    torch.manual_seed(0)
    teacher, model = Net(), Net()
    teacher.blocks[1].eval()
    assert evaluate(teacher, bare(), CONFIG, teacher)["accuracy_to_original"] == 1
    # Its parameters may be those of a model that is trained next.
    assert teacher.training and not teacher.blocks[1].training
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    found, data = evaluate(model, bare(), CONFIG, teacher), bare()
    assert isinstance(data.test, Tensors)
    inputs = (data.test.main.float() / 255 - 0.3) / 0.3
    with torch.no_grad():
        same = (model.eval()(inputs).argmax(1) == teacher.eval()(inputs).argmax(1)).float().mean()
    assert found.keys() == {"loss_to_original", "accuracy_to_original"}
    assert found["accuracy_to_original"] == pytest.approx(float(same)) and same < 1
    with pytest.raises(BadInput, match="bright has no targets; learn from the original: repl-fx heal"):
        evaluate(model, bare(), CONFIG)

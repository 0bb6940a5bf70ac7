"""The Lightning module: losses, logits, the schedule and the groups of the optimizer."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from repl_fx.training.module import Schedule, Training, optimizer_of
from repl_fx.training.tasks import Classification
from repl_fx.training.train_config import TrainConfig
from tests.training.runs import Net, rewritten


def test_the_rate_rises_and_falls_to_zero() -> None:
    factors = [Schedule(10, 0.2)(step) for step in range(10)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert all(b < a for a, b in pairwise(factors[2:]))
    assert Schedule(10, 0.2)(10) == pytest.approx(0)
    assert Schedule(10, 0.0)(0) == 1.0


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_what_has_one_direction_is_not_decayed(name: Any) -> None:
    model = rewritten()
    made = optimizer_of(model.parameters(), TrainConfig(optimizer=name, weight_decay=0.3))
    decayed, free = made.param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.3, 0.0)
    names = {id(parameter): path for path, parameter in model.named_parameters()}
    assert "blocks.0.fc1.weight" in {names[id(p)] for p in decayed["params"]}
    others = {names[id(p)] for p in free["params"]}
    assert {"blocks.0.norm.weight", "head.bias"} < others
    assert any(".surrogate." in path for path in others)
    assert isinstance(made, torch.optim.SGD if name == "sgd" else torch.optim.AdamW)


def test_frozen_parameters_are_left_out() -> None:
    model = Net().requires_grad_(False)
    model.head.weight.requires_grad_(True)
    (group,) = optimizer_of(model.parameters(), TrainConfig()).param_groups
    assert group["params"] == [model.head.weight]


def test_a_step_logs_its_loss_and_an_evaluation_its_figures() -> None:
    figures: dict[str, Any] = {}
    module = Training(Net().eval(), Classification(3), TrainConfig(label_smoothing=0.1), 10)
    module.log = lambda name, value, **_: figures.update({name: value})  # type: ignore[method-assign]
    module.log_dict = lambda found, **_: figures.update(found)  # type: ignore[method-assign]
    x, targets = torch.randn(4, 1, 4, 4), torch.tensor([0, 1, 2, 0])
    expected = F.cross_entropy(module.model(x), targets, label_smoothing=0.1)
    assert torch.equal(module.training_step((x, targets), 0), expected)
    assert torch.equal(figures["loss"], expected)
    module.validation_step((x, targets), 0)
    module.on_validation_epoch_end()
    torch.testing.assert_close(figures["test_loss"], F.cross_entropy(module.model(x), targets))
    assert set(figures) == {"loss", "test_loss", "test_accuracy"}


def test_the_optimizer_steps_its_rate() -> None:
    made = Training(Net(), Classification(3), TrainConfig(lr=0.5, warmup=0.2), 10).configure_optimizers()
    assert made["lr_scheduler"]["interval"] == "step"
    assert made["optimizer"].param_groups[0]["lr"] == pytest.approx(0.5 / 2)

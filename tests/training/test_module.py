"""The Lightning module: losses, logits, the schedule and the groups of the optimizer."""

from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import repl_fx
from repl_fx.training.config import TrainConfig
from repl_fx.training.module import Schedule, Training, logits_of, optimizer_of
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


def test_logits_are_found() -> None:
    logits = torch.randn(2, 3)
    for outputs in (logits, {"logits": logits}, SimpleNamespace(logits=logits), (logits, None)):
        assert logits_of(outputs) is logits
    with pytest.raises(repl_fx.BadInput, match="the model returns a dict, which holds no logits"):
        logits_of({"boxes": logits})


def test_losses_are_those_of_the_task() -> None:
    x, targets = torch.randn(4, 1, 4, 4), torch.tensor([0, 1, 2, 0])
    module = Training(Net().eval(), TrainConfig(label_smoothing=0.1), "classification", 3, 10)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    expected = F.cross_entropy(module(x), targets, label_smoothing=0.1)
    assert torch.equal(module.training_step((x, targets), 0), expected)
    table = nn.Embedding(5, 5)
    text = Training(table, TrainConfig(), "language-modelling", 5, 10)
    text.log = module.log  # type: ignore[method-assign]
    ids = torch.randint(5, (2, 6))
    loss = text.training_step((ids[:, :-1], ids[:, 1:]), 0)
    torch.testing.assert_close(loss, F.cross_entropy(table(ids[:, :-1]).transpose(1, 2), ids[:, 1:]))


def test_the_evaluation_is_over_all_inputs() -> None:
    figures: dict[str, Any] = {}
    module = Training(Net().eval(), TrainConfig(), "classification", 3, 10)
    module.log_dict = lambda found, **_: figures.update(found)  # type: ignore[method-assign]
    x, targets = torch.randn(5, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1])
    for _ in range(2):
        # The second time nothing of the first is left.
        for some in (slice(0, 4), slice(4, 5)):
            module.validation_step((x[some], targets[some]), 0)
        module.on_validation_epoch_end()
    torch.testing.assert_close(figures["test_loss"], F.cross_entropy(module(x), targets))
    torch.testing.assert_close(figures["test_accuracy"], (module(x).argmax(-1) == targets).float().mean())


def test_bits_per_byte_are_the_loss_in_bits() -> None:
    figures: dict[str, Any] = {}
    table = nn.Embedding(4, 4)
    table.weight.data.zero_()
    module = Training(table, TrainConfig(), "language-modelling", 4, 10)
    module.log_dict = lambda found, **_: figures.update(found)  # type: ignore[method-assign]
    module.validation_step((torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 3, dtype=torch.long)), 0)
    module.on_validation_epoch_end()
    assert float(figures["test_bits_per_byte"]) == pytest.approx(math.log2(4))

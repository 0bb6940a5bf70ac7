"""Tests for repl_fx.tracing.data_attributes: what a forward reads as `.data` is its tensor, and none is set unseen."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.errors import CaptureError

Step = Callable[[nn.Linear, Tensor], Tensor]


class Stepped(nn.Module):
    def __init__(self, step: Step) -> None:
        super().__init__()
        self.layer, self.step = nn.Linear(4, 4), step

    def forward(self, x: Tensor) -> Tensor:
        return self.step(self.layer, x)


def clamped_in_training(layer: nn.Linear, x: Tensor) -> Tensor:
    if layer.training:
        layer.weight.data.clamp_(-0.1, 0.1)
    return layer(x)  # type: ignore[no-any-return]


def result_doubled(layer: nn.Linear, x: Tensor) -> Tensor:
    y: Tensor = layer(x)
    y.data[:, 1:].mul_(2)
    return x + y


def read(layer: nn.Linear, x: Tensor) -> Tensor:
    y: Tensor = layer(x)
    return y.data + x @ layer.weight.data + y


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("step", [clamped_in_training, result_doubled, read])
def test_what_is_read_is_the_tensor(step: Step, training: bool) -> None:
    model = Stepped(step)
    gm = repl_fx.capture(deepcopy(model), (torch.randn(2, 4),)).train(training)
    model.train(training)
    for x in (torch.randn(2, 4), torch.randn(5, 4)):
        assert torch.equal(gm(x), model(x))
        gm(x).sum().backward()
        model(x).sum().backward()
    for name, parameter in model.named_parameters():
        assert torch.equal(gm.get_parameter(name), parameter)
        assert torch.equal(gm.get_parameter(name).grad, parameter.grad)  # type: ignore[arg-type]


def result_set(layer: nn.Linear, x: Tensor) -> Tensor:
    y: Tensor = layer(x)
    y.data = y.detach() * 2
    return x + y


def weight_set(layer: nn.Linear, x: Tensor) -> Tensor:
    layer.weight.data = layer.weight.data.clamp(-0.1, 0.1)
    return layer(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("step", [result_set, weight_set])
def test_what_is_set_is_refused(step: Step) -> None:
    with pytest.raises(
        CaptureError, match=r"the forward sets `\.data` of a tensor, which a graph does not \(at .*, line \d+\)"
    ):
        repl_fx.capture(Stepped(step), (torch.randn(2, 4),))

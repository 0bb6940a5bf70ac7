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
    with pytest.raises(CaptureError, match=r"sets `\.data` of a tensor, which a graph does not \(at .*, line \d+\);"):
        repl_fx.capture(Stepped(step), (torch.randn(2, 4),))


def frozen_set(layer: nn.Linear, x: Tensor) -> Tensor:
    layer.weight.requires_grad = False
    return layer(x)  # type: ignore[no-any-return]


def frozen_called(layer: nn.Linear, x: Tensor) -> Tensor:
    layer.weight.requires_grad_(requires_grad=False)  # type: ignore[call-arg]
    return layer(x)  # type: ignore[no-any-return]


def frozen_meanwhile(layer: nn.Linear, x: Tensor) -> Tensor:
    y: Tensor = layer.requires_grad_(False)(x)
    layer.requires_grad_(True)
    return y


@pytest.mark.parametrize("step", [frozen_set, frozen_called, frozen_meanwhile])
def test_a_parameter_that_the_forward_freezes_is_refused_and_left_as_it_was(step: Step) -> None:
    model = Stepped(step)
    with pytest.raises(CaptureError, match=r"the forward sets whether a parameter requires a gradient, .* \(at .*\);"):
        repl_fx.capture(model, (torch.randn(2, 4),))
    assert all(parameter.requires_grad for parameter in model.parameters())


def thawed(layer: nn.Linear, x: Tensor) -> Tensor:
    layer.requires_grad_(True)
    return layer(x.detach().requires_grad_())  # type: ignore[no-any-return]


def test_what_is_set_as_it_is_already_is_no_change() -> None:
    model, x = Stepped(thawed), torch.randn(2, 4)
    assert repl_fx.check_capture(model, repl_fx.capture(model, (x,)), (x,))

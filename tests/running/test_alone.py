"""Threads that capture at once."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier, Event
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.running.alone import alone


class Net(nn.Module):
    """Layers, a draw, and a way that the number of rows decides."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.blocks = nn.Sequential(*(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width)) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        return nn.functional.dropout(x, 0.1, self.training) if len(x) < 9 else x


def test_two_threads_capture_what_one_does() -> None:
    shared = Net(8)
    nets = [shared, Net(4), shared, Net(6)]
    inputs = [torch.randn(3, net.width) for net in nets]
    ready = Barrier(2)

    def captured(net: nn.Module, x: Tensor, *, at_once: bool = False) -> str:
        if at_once:
            ready.wait(60)
        gm = repl_fx.capture(net, (x,))
        assert repl_fx.check_capture(net, gm, (x,))
        return str(gm.code)

    alone_codes = [captured(net, x) for net, x in zip(nets, inputs, strict=True)]
    with ThreadPoolExecutor(2) as threads:
        codes = list(threads.map(lambda given: captured(*given, at_once=True), zip(nets, inputs, strict=True)))
    assert codes == alone_codes


def test_a_function_waits_for_another_thread_and_may_call_itself() -> None:
    inside: list[int] = []
    most: list[int] = []

    @alone()
    def count(again: bool) -> None:
        inside.append(1)
        if again:
            count(False)
        else:
            most.append(len(inside))
        inside.pop()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(count, [True] * 200))
    assert set(most) == {2}


class _Square(torch.autograd.Function):
    """A function of another thread's own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return gradients[0] * 2 * x


def test_other_threads_train_on_meanwhile(request: pytest.FixtureRequest) -> None:
    request.addfinalizer(partial(sys.setswitchinterval, sys.getswitchinterval()))
    sys.setswitchinterval(1e-5)
    done, problems, runs = Event(), list[Exception](), list[Tensor | None]()

    def train() -> None:
        weight = torch.ones(3, requires_grad=True)
        while not done.is_set() and not problems:
            weight.grad = None
            try:
                squares = _Square.apply(weight)
                squares.register_hook(lambda gradient: 3 * gradient)
                squares.sum().backward()
                runs.append(weight.grad)
            except Exception as problem:
                problems.append(problem)

    with ThreadPoolExecutor(1) as threads:
        training = threads.submit(train)
        try:
            for width in (4, 6, 8, 10):
                repl_fx.capture(Net(width), (torch.randn(3, width),))
        finally:
            done.set()
        training.result()
    assert not problems and runs and all(gradient is not None and (gradient == 6).all() for gradient in runs)

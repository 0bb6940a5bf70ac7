"""Threads that capture at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

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

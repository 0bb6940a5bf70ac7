"""Statistics of values that are known by hand."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.finding.blocks import Block, Repeat
from repl_fx.finding.find_repeats import find_repeats
from repl_fx.graph.recording import watched
from repl_fx.planning.scoring import statistics
from repl_fx.planning.scoring.statistics import RepeatStatistics
from tests.nets import ConvNet, MlpNet, TwoStreams, images, tokens
from tests.planning.scoring.nets import Plane

ROOT = 2**0.5


def _observed(net: nn.Module, x: Tensor, *, gradients: bool = False) -> tuple[RepeatStatistics, Any]:
    gm = repl_fx.capture(net.eval(), (x,))
    (repeat,) = find_repeats(gm)
    found = RepeatStatistics(gm, repeat, gradients=gradients)
    return found, watched(gm, found.notes()).eval()


def test_values_by_hand() -> None:
    found, gm = _observed(Plane(), torch.randn(2, 2))
    with torch.no_grad():
        gm(torch.tensor([[3.0, 4.0], [0.0, -1.0]]))
    cosine = pytest.approx(1 - 1 / ROOT, abs=1e-15)
    influences = {pair: alike.influence for pair, alike in found.alike.items()}
    assert influences == {(0, 0): 0.0, (1, 1): 0.0, (0, 1): 0.0, (2, 2): cosine, (1, 2): cosine, (0, 2): cosine}
    assert [found.alike[i, i].change for i in range(3)] == [1.0, 0.0, 1.0]


def test_zeros_are_like_zeros_alone() -> None:
    net = Plane()
    with torch.no_grad():
        # The first block takes all away, the last one has nothing to turn.
        net.get_parameter("blocks.0.turn.weight").copy_(-torch.eye(2))
    found, gm = _observed(net, torch.randn(2, 2))
    with torch.no_grad():
        gm(torch.ones(3, 2))
    assert [found.alike[i, i].influence for i in range(3)] == [1.0, 0.0, 0.0]
    assert [found.alike[i, i].change for i in range(3)] == [1.0, None, None]


def test_the_gradient_is_that_of_each_sample() -> None:
    found, gm = _observed(Plane(), torch.randn(2, 2), gradients=True)
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    loss = gm(x).sum(1).mean()
    found.add_gradients(torch.autograd.grad(loss, found.edges, allow_unused=True), 2)
    # Behind block 2 the gradient of a sample is (1, 1), before it that times 1 + a right angle: (2, 0).
    # Block 0 adds (1, 0) and (0, 2); block 1 nothing; block 2 the turned (2, 0) and (0, 4): (0, 2) and (-4, 0).
    assert [one.gradient for one in found.sensitive] == [(2 + 0) / 2, 0.0, (2 + 4) / 2]


def test_a_gradient_that_is_no_number_is_none() -> None:
    found, gm = _observed(Plane(), torch.randn(2, 2), gradients=True)
    y = gm(torch.eye(2))
    # The root of a sum of squares has no gradient at zero.
    loss = (y + (y - y.detach()).square().sum(1, keepdim=True).sqrt()).mean()
    assert bool(loss.isfinite())
    found.add_gradients(torch.autograd.grad(loss, found.edges), 2)
    said = "the gradient of the loss there is no finite number"
    assert [(one.gradient, one.reason) for one in found.sensitive] == [(None, said)] * 3


def test_positions_are_along_all_but_the_feature_axis() -> None:
    for net, x, positions in (
        (ConvNet(2, 2), images(3), 3 * 8 * 8),
        (MlpNet(2), tokens(3, 5), 3 * 5),
        # Those of both streams.
        (TwoStreams(4), torch.randn(3, 4), 3 + 3),
    ):
        found, gm = _observed(net, x)
        gm(x)
        assert found.alike[0, 1].positions == positions


def test_values_that_change_their_shape_have_no_angle() -> None:
    gm = repl_fx.capture(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6)).eval(), (torch.randn(2, 4),))
    x, first, second = (node for node in gm.graph.nodes if node.op in ("placeholder", "call_module"))
    blocks = (
        Block(name, (made,), (given,), (made,), (), (), (), None, {})
        for name, given, made in (("0", x, first), ("1", first, second))
    )
    found = RepeatStatistics(gm, Repeat("", tuple(blocks)), gradients=True)
    watched(gm, found.notes())(torch.randn(3, 4))
    assert [alike.reason for alike in found.alike.values()] == [
        "it turns 3x4 into 3x5",
        "it turns 3x4 into 3x6",
        "it turns 3x5 into 3x6",
    ]
    assert found.alike[0, 0].influence is found.alike[0, 0].change is None and not found.edges


def test_values_of_one_batch_alone_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[Tensor]] = []
    most = 0
    copied = statistics._copied

    def counted(value: Tensor) -> Tensor:
        nonlocal most
        made = copied(value)
        alive.append(weakref.ref(made))
        most = max(most, sum(one() is not None for one in alive))
        return made

    monkeypatch.setattr(statistics, "_copied", counted)
    found, gm = _observed(Plane(), torch.randn(2, 2), gradients=True)
    for _ in range(3):
        loss = gm(torch.randn(4, 2)).sum()
        found.add_gradients(torch.autograd.grad(loss, found.edges), 4)
        found.forget()
    gc.collect()
    assert most == 4 and len(alive) == 12
    assert not any(one() is not None for one in alive)


def test_values_that_are_no_finite_numbers_are_named() -> None:
    found, gm = _observed(Plane(), torch.randn(2, 2))
    gm(torch.tensor([[1.0, float("inf")]]))
    assert found.broken == [0, 1, 2]
    found.forget()
    gm(torch.ones(1, 2))
    assert found.broken == []

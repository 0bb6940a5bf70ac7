"""Pieces of a graph, run alone in double precision."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, fx, nn

import repl_fx
from repl_fx.fitting.pieces import Piece, axis_of_first, close, in_double


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        y.add_(self.two(torch.relu(y)) * x)
        out: Tensor = y.exp()
        return out


@pytest.mark.parametrize("instead", [False, True])
def test_a_piece_makes_what_the_graph_does_and_changes_nothing(instead: bool) -> None:
    net = _Net()
    gm = fx.symbolic_trace(net)
    nodes = {node.name: node for node in gm.graph.nodes}
    piece = Piece(gm, [nodes["two"]], nodes["add_"], instead=instead)
    assert piece.given == tuple(nodes[name] for name in (("two", "x", "one") if instead else ("relu", "x", "one")))
    assert nodes["mul"] in piece and nodes["exp"] not in piece and nodes["relu"] not in piece
    x, bias = torch.randn(2, 3), net.two.bias
    before = bias.detach().clone()
    with torch.no_grad():
        one = net.one(x)
        values = {
            nodes["x"]: x,
            nodes["one"]: one.clone(),
            nodes["relu"]: one.relu(),
            nodes["two"]: net.two(one.relu()),
        }
        made = piece(values)
    assert made.dtype == torch.float64 and torch.equal(values[nodes["one"]], one)
    torch.testing.assert_close(made.float(), one + net.two(one.relu()) * x)
    if not instead:
        piece.parameter(nodes["two"], "bias").add_(1)
        torch.testing.assert_close(piece(values), made + x)
        assert bias is net.two.bias and torch.equal(bias, before)


def test_casts_within_a_piece_are_to_double() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.two(self.one(x).to(torch.float32).square().to(dtype=torch.float16).to(x.dtype))
            return out

    net = Normed().half()
    gm = repl_fx.capture(net, (torch.randn(2, 3).half(),))
    (one, two) = (next(node for node in gm.graph.nodes if node.target == name) for name in ("one", "two"))
    piece = Piece(gm, [one], two)
    x = torch.randn(2, 3).half()
    exact = copy.deepcopy(net).double()
    torch.testing.assert_close(piece({node: x for node in piece.given}), exact.two(exact.one(x.double()).square()))


def test_values_in_double_are_copies_and_integers_stay() -> None:
    tensor, numbers = torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.int64)
    one, (two, three) = in_double((tensor, [numbers, 5]))
    one += 1
    two += 1
    assert three == 5 and two.dtype == torch.int64 and tensor.sum() == numbers.sum() == 2


def test_the_axis_of_channels_is_seen_and_not_guessed() -> None:
    moved = torch.zeros(2, 3, 3)
    moved[:, :, 0] = 1
    assert axis_of_first(moved) == 2
    assert axis_of_first(moved.transpose(1, 2)) == 1
    moved[:, :, 1] = 1
    assert axis_of_first(moved) is None and axis_of_first(torch.zeros(2, 3)) is None


def test_close_is_measured_against_a_size() -> None:
    one = torch.ones(4, dtype=torch.float64)
    assert close(one + 1e-9, one, one) and not close(one + 1e-6, one, one) and close(one + 1e-6, one, 100 * one)

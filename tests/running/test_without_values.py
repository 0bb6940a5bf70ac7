"""Runs on shapes alone: what they tell of the results on values, and what they leave open."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repl_fx.running.collection import collection_paused
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.without_values import WithoutValues, same_results

X = torch.linspace(-1, 1, 12).reshape(3, 4)


class Runs(nn.Module):
    """A forward around one layer, a norm, a table and a dropout, which all such modules share."""

    fc, norm, drop = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)

    def __init__(self, forward: Callable[[Runs, Tensor], Tensor], table: Tensor = X[0]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([self.fc, self.norm, self.drop])
        self.table = table
        self.code = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.code(self, x)


def written(late: bool) -> Callable[[Runs, Tensor], Tensor]:
    """A row is written to before, or after, another view of it is read."""

    def forward(net: Runs, x: Tensor) -> Tensor:
        y = x * 2
        row = y[0]
        read = row + 1 if late else None
        y.add_(3)
        return row + 1 if read is None else read

    return forward


def drawn(first: bool) -> Callable[[Runs, Tensor], Tensor]:
    def forward(net: Runs, x: Tensor) -> Tensor:
        drawn: list[Tensor] = [net.drop(x), net.drop(x)]
        return drawn[not first]

    return forward


SAME: list[tuple[Callable[[Runs, Tensor], Tensor], Callable[[Runs, Tensor], Tensor]]] = [
    (lambda net, x: net.norm(net.fc(x)), lambda net, x: net.norm(F.linear(x, net.fc.weight, net.fc.bias))),
    (lambda net, x: x.relu() + net.table, lambda net, x: x.detach()[:].relu() + net.table),
    # What is not returned has no part.
    (lambda net, x: x.relu(), lambda net, x: (x.exp(), x.relu())[1]),
    (written(True), written(True)),
    (drawn(True), drawn(True)),
]
OTHER = [
    (lambda net, x: x.relu(), lambda net, x: x.exp()),
    (lambda net, x: x * 2.0, lambda net, x: x * 3.0),
    (lambda net, x: x + x[:, :1], lambda net, x: x + x[:, 1:2]),
    (lambda net, x: net.fc(x), lambda net, x: x @ net.fc.weight),
    (written(True), written(False)),
    (drawn(True), drawn(False)),
]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("pair", SAME)
def test_equal_operators_are_equal_results(pair: tuple[Callable[[Runs, Tensor], Tensor], ...], training: bool) -> None:
    model, graph = Runs(pair[0]), Runs(pair[1], X[0].clone())
    before, place = [buffer.clone() for buffer in model.buffers()], torch.get_rng_state()
    assert WithoutValues().returned(model, graph, ExampleInputs((X,)), training)
    assert all(map(torch.equal, model.buffers(), before)) and torch.equal(torch.get_rng_state(), place)


@pytest.mark.parametrize("pair", OTHER)
def test_other_operators_tell_nothing(pair: tuple[Callable[[Runs, Tensor], Tensor], ...]) -> None:
    shapes, inputs = WithoutValues(), ExampleInputs((X,))
    ours, theirs = (shapes.run(Runs(forward), inputs, training=True) for forward in pair)
    assert same_results(ours, theirs) is None


def test_constants_are_compared_by_their_values() -> None:
    adds: Callable[[Runs, Tensor], Tensor] = lambda net, x: x + net.table  # noqa: E731
    model = Runs(adds)
    assert not WithoutValues().returned(model, Runs(adds, X[1].clone()), ExampleInputs((X,)), training=False)
    assert not WithoutValues().returned(model, Runs(adds, X[1]), ExampleInputs((X,)), training=False)


def test_shapes_tell_results_apart() -> None:
    shapes, inputs = WithoutValues(), ExampleInputs((X,))
    whole, part, stops = (
        shapes.run(Runs(forward), inputs, training=False)
        for forward in (lambda net, x: x, lambda net, x: x[:1], lambda net, x: x @ x)
    )
    assert same_results(whole, part) is False and same_results(whole, stops) is False
    assert stops.stopped and same_results(stops, stops) is True


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: x if x.sum() > 0 else -x,
        lambda net, x: x[x > 0],
        lambda net, x: x + torch.from_numpy(x.numpy()),
        lambda net, x: x * net.fc.weight.max().item(),
    ],
    ids=["a branch", "a choice", "numpy", "a weight"],
)
def test_code_that_asks_for_values_is_open(forward: Callable[[Runs, Tensor], Tensor]) -> None:
    shapes, inputs = WithoutValues(), ExampleInputs((X,))
    run = shapes.run(Runs(forward), inputs, training=False)
    assert run.open and not run.stopped and not shapes.returned(Runs(forward), Runs(forward), inputs, training=False)


def test_a_run_that_stops_at_a_size_says_nothing_on_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    assert WithoutValues().run(nn.AvgPool2d(4), ExampleInputs((torch.ones(1, 1, 8, 2),)), training=False).stopped
    assert capfd.readouterr() == ("", "")


def test_a_model_goes_with_the_last_reference_to_its_runs() -> None:
    model = nn.Linear(3, 3)
    weight, runs = weakref.ref(model.weight), WithoutValues()
    # Else a cycle would be gone by chance.
    with collection_paused():
        runs.run(model, ExampleInputs((torch.randn(2, 3),)), training=False)
        del model, runs
        assert weight() is None

"""What a forward changes of Python state is noted, and refused by name and line where a graph would have to follow."""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.errors import CaptureError
from repl_fx.running.python_state import PythonState
from repl_fx.tracing.capture import capture, check_capture
from repl_fx.tracing.state_changes import changes_noted
from tests.tracing.nets import keeps_an_activation

CALLS = 0
LOG: list[int] = []


class Settings:
    def __init__(self) -> None:
        self.count = 0


class Slotted:
    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class Net(nn.Module):
    """What its forward does with its state is given."""

    total = 0

    def __init__(self, act: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.act = act
        self.fc, self.drop = nn.Linear(8, 8), nn.Dropout(0.5)
        self.twins = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.count, self.log, self.table, self.pair = 0, [0], {"a": 0}, (0, [0])
        self.settings, self.slotted, self.array = Settings(), Slotted(), np.zeros(2)
        self.last, self.own, self.ready = deque([0], maxlen=2), random.Random(0), False
        self.kept: Tensor | None = None
        self.mean = torch.zeros(8)
        self.register_buffer("filled", None)
        self.register_buffer("start", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.act(self, x))  # type: ignore[no-any-return]


def count(net: Any, x: Tensor) -> Tensor:
    net.count += 1
    return x * net.count  # type: ignore[no-any-return]


def count_only(net: Any, x: Tensor) -> Tensor:
    net.count += 1
    return x


def log(net: Any, x: Tensor) -> Tensor:
    net.log.append(1)
    return x * len(net.log)


def table(net: Any, x: Tensor) -> Tensor:
    net.table["a"] += 1
    return x * net.table["a"]  # type: ignore[no-any-return]


def inside_a_tuple(net: Any, x: Tensor) -> Tensor:
    net.pair[1][0] += 1
    return x * net.pair[1][0]  # type: ignore[no-any-return]


def settings(net: Any, x: Tensor) -> Tensor:
    net.settings.count += 1
    return x * net.settings.count  # type: ignore[no-any-return]


def slotted(net: Any, x: Tensor) -> Tensor:
    net.slotted.count += 1
    return x * net.slotted.count  # type: ignore[no-any-return]


def array(net: Any, x: Tensor) -> Tensor:
    net.array += 1
    return x * float(net.array[0])


def last(net: Any, x: Tensor) -> Tensor:
    net.last.append(len(net.last) + net.last[-1])
    return x * net.last[-1]  # type: ignore[no-any-return]


def of_the_class(net: Any, x: Tensor) -> Tensor:
    Net.total += 1
    return x * Net.total


def of_the_file(net: Any, x: Tensor) -> Tensor:
    global CALLS
    CALLS += 1
    LOG.append(1)
    return x * CALLS


def a_running_mean(net: Any, x: Tensor) -> Tensor:
    net.mean = 0.9 * net.mean + x.detach().mean(0)
    return x + net.mean  # type: ignore[no-any-return]


def in_the_first_call_alone(net: Any, x: Tensor) -> Tensor:
    if not net.ready:
        net.ready = True
        return x * 2
    return x


def from_the_first_input(net: Any, x: Tensor) -> Tensor:
    if not net.ready:
        net.ready = True
        net.start.copy_(x.detach().mean(0))
    return x - net.start  # type: ignore[no-any-return]


def own_generator(net: Any, x: Tensor) -> Tensor:
    return x * net.own.random()  # type: ignore[no-any-return]


def sets_a_dropout(net: Any, x: Tensor) -> Tensor:
    net.drop.p = 0.1
    return net.drop(x)  # type: ignore[no-any-return]


def swaps_modules(net: Any, x: Tensor) -> Tensor:
    net.twins[0], net.twins[1] = net.twins[1], net.twins[0]
    return net.twins[0](x)  # type: ignore[no-any-return]


def replaces_a_parameter(net: Any, x: Tensor) -> Tensor:
    net.fc.weight = nn.Parameter(net.fc.weight * 0.9)
    return x


def changes_mode(net: Any, x: Tensor) -> Tensor:
    net.kept = x
    net.twins.training = not net.twins.training
    return x if net.twins.training else 2 * x


def registers_a_hook(net: Any, x: Tensor) -> Tensor:
    net.kept = x
    net.drop.register_forward_hook(lambda module, args, result: 2 * result)
    return x + net.drop(x)  # type: ignore[no-any-return]


def seeds(net: Any, x: Tensor) -> Tensor:
    torch.manual_seed(3)
    return x + torch.rand(8)


REFUSED: dict[Callable[[Any, Tensor], Tensor], str] = {
    count: "moves with every forward: count",
    count_only: "moves with every forward: count",
    log: "moves with every forward: log",
    table: r"table\['a'\]",
    inside_a_tuple: r"pair\[1\]\[0\]",
    settings: r"settings\.count",
    slotted: r"slotted\.count",
    array: "array",
    last: "last",
    of_the_class: r"Net\.total",
    of_the_file: "CALLS",
    a_running_mean: "has a part in the next: mean",
    in_the_first_call_alone: "has a part in the next: ready",
    from_the_first_input: "ready",
    own_generator: "own",
    sets_a_dropout: r"drop\.p",
    swaps_modules: r"twins\.0",
    replaces_a_parameter: r"fc\.weight|as parameter 'weight'",
    changes_mode: "has a part in the next: kept",
    registers_a_hook: "has a part in the next: kept",
    seeds: "the forward calls manual_seed",
}


@pytest.mark.parametrize("act", REFUSED, ids=lambda act: act.__name__)
def test_state_that_a_graph_would_have_to_follow_is_refused(act: Callable[[Any, Tensor], Tensor]) -> None:
    model = Net(act)
    before = PythonState(model)
    with pytest.raises(CaptureError, match=REFUSED[act]):
        capture(model, (torch.randn(3, 8),))
    assert before.changes(PythonState(model)) == []
    assert (CALLS, LOG, Net.total) == (0, [], 0)


def remembers(net: Any, x: Tensor) -> Tensor:
    last, net.kept = net.kept, x.detach().mean(0)
    return x if last is None else x - last


@pytest.mark.parametrize("ids", [False, True])
def test_what_a_run_on_the_example_inputs_left_behind_is_no_proof_that_nothing_moves(ids: bool) -> None:
    # What the example inputs leave behind is there already.
    embed = nn.Embedding(9, 8).requires_grad_(False)
    model = Net(lambda net, x: remembers(net, embed(x).mean(1) if ids else x))
    x = torch.arange(12).reshape(3, 4) % 9 if ids else torch.randn(3, 8)
    model(x)
    with pytest.raises(CaptureError, match="has a part in the next: kept"):
        capture(model, (x,))


def divides_by_the_longest(net: Any, x: Tensor) -> Tensor:
    if net.kept is None or len(x) > net.kept:
        net.kept = torch.tensor(len(x))
    return x / net.kept  # type: ignore[no-any-return]


def test_what_larger_inputs_leave_behind_may_have_a_part_at_smaller_ones_alone() -> None:
    with pytest.raises(CaptureError, match=r"has a part in the next where sizes differ \(.*\): kept"):
        capture(Net(divides_by_the_longest), (torch.randn(6, 8),))
    model, x = Net(divides_by_the_longest), torch.randn(6, 8)
    assert check_capture(model, capture(model, (x,), fixed=["batch"]), (x,))


def grows_a_table(net: Any, x: Tensor) -> Tensor:
    if net.kept is None or len(x) > len(net.kept):
        net.kept = torch.arange(len(x)).cos()
    return x * net.kept[: len(x), None]  # type: ignore[no-any-return]


def test_a_table_that_grows_is_no_obstacle() -> None:
    model = Net(grows_a_table)
    gm = capture(model, (torch.randn(6, 8),))
    for length in (3, 9, 6):
        assert check_capture(model, gm, (torch.randn(length, 8),))


def test_an_iterator_is_refused() -> None:
    model = Net(lambda net, x: x * next(net.rates))
    model.rates = itertools.cycle([1.0, 2.0])  # type: ignore[assignment]
    with pytest.raises(CaptureError, match="rates"):
        capture(model, (torch.randn(3, 8),))


def makes_a_table_when_needed(net: Any, x: Tensor) -> Tensor:
    if net.kept is None:
        net.kept = torch.arange(8.0).cos()
    return x * net.kept  # type: ignore[no-any-return]


def fills_a_buffer_when_needed(net: Any, x: Tensor) -> Tensor:
    if net.filled is None:
        net.filled = torch.arange(8.0).cos()
    return x * net.filled  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "act", [keeps_an_activation, makes_a_table_when_needed, fills_a_buffer_when_needed], ids=lambda act: act.__name__
)
def test_state_without_a_part_in_the_results_is_no_obstacle(act: Callable[[Any, Tensor], Tensor]) -> None:
    model, x = Net(act), torch.randn(3, 8)
    gm = capture(model, (x,))
    assert check_capture(model, gm, (x,))
    assert model.kept is None and model.filled is None


def test_a_part_leaves_the_module_that_counts_eager() -> None:
    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(4)))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x)  # type: ignore[no-any-return]

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.calls = Body(), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.body(x) * self.calls  # type: ignore[no-any-return]

    model, x = Counting(), torch.randn(3, 8)
    result = repl_fx.transform(model, (x,), surrogate="identity")
    assert [part.path for part in result.parts] == ["body"]
    once, twice = result.module(x), result.module(x)
    assert torch.equal(twice, 2 * once) and result.module.calls == 2 and model.calls == 0


def test_the_line_is_named() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.count = 0

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            return x * self.count

    line = Counts.forward.__code__.co_firstlineno + 1
    with pytest.raises(CaptureError, match=rf"0\.count, .*test_state_changes\.py, line {line};"):
        capture(nn.Sequential(Counts()), (torch.randn(3, 8),))


def test_changes_of_a_forward_are_noted() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.kept, self.inner = x, nn.Identity()
            return x

    model, x = Net(), torch.ones(2)
    with changes_noted(model) as noted:
        model(x)
        del model.kept
    assert [(change.path, change.is_tensor) for change in noted.changes] == [("kept", True)]
    assert noted.replaced == ["inner", "inner"] and noted and not noted.unseen

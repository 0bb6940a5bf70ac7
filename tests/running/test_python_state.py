"""Python state that a graph would have to follow is refused by name; what has no part in the results is not."""

from __future__ import annotations

import functools
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
from tests.tracing import counters

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


def test_the_line_is_named() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.count = 0

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            return x * self.count

    line = Counts.forward.__code__.co_firstlineno + 1
    with pytest.raises(CaptureError, match=rf"0\.count, .*test_python_state\.py, line {line};"):
        capture(nn.Sequential(Counts()), (torch.randn(3, 8),))


def test_an_iterator_is_refused() -> None:
    model = Net(lambda net, x: x * next(net.rates))
    model.rates = itertools.cycle([1.0, 2.0])  # type: ignore[assignment]
    with pytest.raises(CaptureError, match="rates"):
        capture(model, (torch.randn(3, 8),))


def test_a_closure_and_a_mutable_default_are_refused() -> None:
    seen = 0

    class Closes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal seen
            seen += 1
            return x * seen

    class Collects(nn.Module):
        def forward(self, x: Tensor, known: list[int] = []) -> Tensor:  # noqa: B006
            known.append(1)
            return x * len(known)

    for module in (Closes(), Collects()):
        with pytest.raises(CaptureError, match="moves with every forward"):
            capture(nn.Sequential(nn.Linear(8, 8), module), (torch.randn(3, 8),))
    assert seen == 0


def default_of_its_file(x: Tensor, known: list[int] = []) -> Tensor:  # noqa: B006
    known.append(1)
    return x * len(known)


def attribute_of_its_own(x: Tensor) -> Tensor:
    attribute_of_its_own.calls = getattr(attribute_of_its_own, "calls", 0) + 1  # type: ignore[attr-defined]
    return x * attribute_of_its_own.calls  # type: ignore[attr-defined,no-any-return]


def only_by_keyword(x: Tensor, *, known: list[int]) -> Tensor:
    known.append(1)
    return x * len(known)


def closes() -> Callable[[Tensor], Tensor]:
    seen = 0

    def function(x: Tensor) -> Tensor:
        nonlocal seen
        seen += 1
        return x * seen

    return function


class Held(nn.Module):
    """Calls what it holds."""

    def __init__(self, held: Any) -> None:
        super().__init__()
        self.fc, self.held = nn.Linear(8, 8), held

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.held(x))  # type: ignore[no-any-return]


class FromOutside(nn.Module):
    """Calls what is in a file, its own or one that it imports from."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.fc, self.name = nn.Linear(8, 8), name

    def forward(self, x: Tensor) -> Tensor:
        if self.name == "object":
            return self.fc(counters.COUNTER(x))  # type: ignore[no-any-return]
        if self.name == "function":
            return self.fc(counters.counted(x))  # type: ignore[no-any-return]
        if self.name == "class":
            Settings.total = getattr(Settings, "total", 0) + 1  # type: ignore[attr-defined]
            return self.fc(x * Settings.total)  # type: ignore[attr-defined,no-any-return]
        return self.fc({"default": default_of_its_file, "attribute": attribute_of_its_own}[self.name](x))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Held(counters.Counter()), r"held\.count"),
        (lambda: Held([counters.Counter()][0].__call__), r"held\.__self__\.count"),
        (lambda: Held(functools.partial(only_by_keyword, known=[])), r"held\[0\]"),
        (lambda: Held(closes()), r"closes.<locals>.function\(\): seen"),
        (lambda: FromOutside("object"), r"counters\.COUNTER\.count"),
        (lambda: FromOutside("function"), r"counters\.CALLS\[0\]"),
        (lambda: FromOutside("class"), r"Settings\.total"),
        (lambda: FromOutside("default"), r"default_of_its_file\(\): 0"),
        (lambda: FromOutside("attribute"), r"attribute_of_its_own\(\)\['calls'\]"),
    ],
    ids=["callable", "method", "partial", "closure", "object", "function", "class", "default", "attribute"],
)
def test_what_a_forward_calls_may_not_count_either(make: Callable[[], nn.Module], named: str) -> None:
    model = make()
    before = PythonState(model)
    with pytest.raises(CaptureError, match=f"moves with every forward: .*{named}"):
        capture(model, (torch.randn(3, 8),))
    assert before.changes(PythonState(model)) == []


def test_functions_and_objects_that_do_not_count_are_no_obstacle() -> None:
    class Plain:
        def __call__(self, x: Tensor) -> Tensor:
            return x.relu()

    for held in (Plain(), functools.partial(torch.clamp, min=0), torch.tanh, Plain().__call__):
        model, x = Held(held), torch.randn(3, 8)
        assert check_capture(model, capture(model, (x,)), (x,))


def test_one_object_under_two_names_may_become_two() -> None:
    """torch.export puts copies of containers back."""
    model = Net(lambda net, x: x)
    model.table = {"sizes": [4, 4]}  # type: ignore[dict-item]
    model.log = model.table["sizes"]  # type: ignore[assignment]
    before = PythonState(model)
    model.log = [4, 4]
    assert before.changes(PythonState(model)) == []
    model.log = [4, 5]
    (change,) = before.changes(PythonState(model))
    assert change.path in ("log[1]", "table['sizes'][1]")


def test_a_layer_that_shares_its_settings_with_the_model_is_no_obstacle() -> None:
    class Unfolds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.size = [2, 2]
            self.unfold, self.fc = nn.Unfold(self.size, stride=self.size), nn.Linear(4, 4)  # type: ignore[arg-type]

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.fc(self.unfold(x).mT)
            return made.view(*x.shape[:1], *self.size, -1)

    model, x = nn.Sequential(Unfolds(), nn.Identity()), torch.randn(3, 1, 4, 4)
    assert check_capture(model, capture(model, (x,)), (x,))


def keeps_an_activation(net: Any, x: Tensor) -> Tensor:
    net.kept = x * 2
    net.table["latest"] = x
    return x


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


def test_a_container_of_its_own_kind_is_not_touched() -> None:
    made = []

    class Makes(dict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            made.append(key)
            return super().__getitem__(key)

    model = Net(keeps_an_activation)
    model.table = Makes(a=1)
    capture(model, (torch.randn(3, 8),))
    assert made == []

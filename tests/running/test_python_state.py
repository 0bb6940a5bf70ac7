"""Python state is found wherever a forward reaches it, and named by its path and the line that changes it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repl_fx.errors import CaptureError
from repl_fx.running.python_state import PythonState
from repl_fx.tracing.capture import capture, check_capture
from tests.tracing import counters
from tests.tracing.nets import keeps_an_activation


class Settings:
    pass


class Net(nn.Module):
    """Keeps a table and a list; what its forward does with them is given."""

    def __init__(self, act: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.act = act
        self.fc, self.log, self.table = nn.Linear(8, 8), [0], {"a": 0}
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.act(self, x))  # type: ignore[no-any-return]


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
        (lambda: Held(import_module("tests.tracing.tallies").counted), r"tallies\.CALLS"),
        (lambda: Held(import_module("tests.tracing.tallies").Tally()), r"Tally\.total"),
        (lambda: FromOutside("object"), r"counters\.COUNTER\.count"),
        (lambda: FromOutside("function"), r"counters\.CALLS\[0\]"),
        (lambda: FromOutside("class"), r"Settings\.total"),
        (lambda: FromOutside("default"), r"default_of_its_file\(\): 0"),
        (lambda: FromOutside("attribute"), r"attribute_of_its_own\(\)\['calls'\]"),
    ],
    ids=[
        "callable",
        "method",
        "partial",
        "closure",
        "other file",
        "other class",
        "object",
        "function",
        "class",
        "default",
        "attribute",
    ],
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


def test_a_library_in_the_users_folder_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    number, looks, look_in = 100, [0], PythonState._look_in
    parts = (
        f"class Kind{i}:\n    size = {i}\n"
        f"def function{i}(x):\n    Kind{i}.size, x.attribute{i}\n    return function{i + 1}(x)\n"
        for i in range(number)
    )
    library: dict[str, Any] = {"__name__": "library_of_the_user"}
    exec("".join(parts), library)

    def counted(self: PythonState, *args: Any) -> None:
        looks[0] += 1
        look_in(self, *args)

    monkeypatch.setattr(PythonState, "_look_in", counted)
    state = PythonState(Held(library["function0"]))
    assert f"Kind{number - 1}.size" in state._values
    assert looks[0] < 10 * number


class Pair(tuple[int, int]):
    """Stands for one thing, and is not to be counted, as an `Irrep` of e3nn."""

    def __len__(self) -> int:
        raise NotImplementedError

    __iter__ = __len__  # type: ignore[assignment]


class Members(frozenset[int]):
    def __len__(self) -> int:
        raise NotImplementedError


def test_tuples_and_sets_of_a_class_of_their_own_are_looked_into_as_what_they_hold() -> None:
    net: Any = Net(lambda net, x: x * net.pair[0] * (1 in net.members))
    net.pair, net.members = Pair((2, 3)), Members((1,))
    known = PythonState(net)
    net.pair = Pair((4, 3))
    assert [change.path for change in known.changes(PythonState(net))] == ["pair[0]"]

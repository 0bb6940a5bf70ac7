"""Which modules are of one structure, and in which attributes they differ."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from repl_fx.tracing.alike import attributes_of_tree, differences, names_of, structure_of, tolerated

SHARED = SimpleNamespace(width=3)


class Holder:
    """Holds a width."""

    def __init__(self, width: int) -> None:
        self.width = width


SAME: dict[str, tuple[Any, Any]] = {
    "numbers": (3, 3),
    "containers": ([1, {"a": (2.0, None)}], [1, {"a": (2.0, None)}]),
    "one object": (SHARED, SHARED),
    "objects that hold the same": (Holder(3), Holder(3)),
    "one function": (torch.relu, torch.relu),
    "partial functions": (partial(torch.sum, dim=1), partial(torch.sum, dim=1)),
}
OTHER: dict[str, tuple[Any, Any]] = {
    "numbers": (3, 4),
    "kinds of numbers": (1, True),
    "containers": ([1, 2], [1, 3]),
    "objects": (Holder(3), Holder(4)),
    "functions": (torch.relu, torch.tanh),
    "tensors": (torch.ones(2), torch.ones(2)),
}


def pair(one: Any, other: Any) -> tuple[nn.Module, nn.Module]:
    modules = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))
    for module, value in zip(modules, (one, other), strict=True):
        module.value = value
    return modules


def found(one: nn.Module, other: nn.Module) -> list[tuple[str, str]]:
    pairs: dict[int, Any] = dict(zip(map(id, one.modules()), other.modules(), strict=True))
    return differences(attributes_of_tree(one), attributes_of_tree(other), pairs)


@pytest.mark.parametrize("case", SAME)
def test_attributes_that_are_the_same(case: str) -> None:
    assert found(*pair(*SAME[case])) == []


@pytest.mark.parametrize("case", OTHER)
def test_attributes_that_differ(case: str) -> None:
    assert found(*pair(*OTHER[case])) == [("", "value")]


def test_a_reference_to_a_module_is_the_same_where_it_leads_to_its_counterpart() -> None:
    one, other = pair(None, None)
    one.value, other.value = [one[0]], [other[0]]  # type: ignore[index,assignment]
    assert found(one, other) == []
    other.value = [one[0]]  # type: ignore[index,assignment]
    assert found(one, other) == [("", "value")]


def test_structures() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 3), nn.Linear(2, 2, bias=False))
    owners = names_of(model)
    first, second, *rest = (structure_of(layer, owners) for layer in model)
    assert first == second and hash(first) == hash(second)
    assert all(one != first for one in rest)
    model[1].register_forward_hook(lambda module, args, result: None)
    assert structure_of(model[1], owners) != first


def test_probabilities_of_dropout_may_differ_but_for_zero() -> None:
    drop = nn.Dropout(0.1)
    assert tolerated(drop, "p", 0.1, 0.2)
    assert not tolerated(drop, "p", 0.0, 0.2)
    assert not tolerated(nn.Linear(2, 2), "p", 0.1, 0.2)
    assert not tolerated(nn.Softmax(1), "dim", 1, 2)

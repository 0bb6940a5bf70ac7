"""Tests for repl_fx.running.opaque_outputs: tensors inside objects of unknown structure, and what is the same value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from repl_fx.running.opaque_outputs import (
    all_finite,
    equal_leaves,
    floating_outputs,
    is_object,
    open_objects,
    same_value,
)


class Holder:
    """Has no constructor that could be called without arguments."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.notes = ["one"]
        self.dtype = torch.float32


def test_an_object_is_opened_at_any_depth_and_rebuilt_around_other_tensors() -> None:
    inner = Holder(torch.ones(2))
    leaves, structure = pytree.tree_flatten(open_objects({"cache": Holder([inner, 3])}))
    assert len([leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]) == 1
    made = pytree.tree_unflatten([leaf * 5 for leaf in leaves], structure)["cache"]
    assert type(made) is Holder
    assert made.value[1] == 15
    assert torch.equal(made.value[0].value, torch.full((2,), 5.0))
    assert made.dtype is torch.float32


def test_floating_outputs_are_those_with_gradients_real_and_in_single_precision_or_more() -> None:
    half, double, wave = (torch.ones(2, dtype=dtype) for dtype in (torch.float16, torch.float64, torch.complex64))
    with_gradients = [tensor.requires_grad_() for tensor in (half, double, wave)]
    found = floating_outputs([Holder({"a": half, "b": torch.ones(2)}), (double, wave), torch.arange(2), "text"])
    assert [(tensor.dtype, tensor.shape) for tensor in found] == [
        (torch.float32, (2,)),
        (torch.float64, (2,)),
        (torch.float32, (2, 2)),
    ]
    assert all(tensor.requires_grad for tensor in (*found, *with_gradients))


def test_sparse_and_conjugated_outputs_are_taken_as_their_values() -> None:
    weight = torch.tensor([0.0, 2.0], requires_grad=True)
    wave = torch.tensor([1 + 2j], requires_grad=True)
    sparse, conjugated = floating_outputs((weight.to_sparse(), wave.conj()))
    assert torch.equal(sparse, weight) and torch.equal(conjugated, torch.tensor([[1.0, -2.0]]))
    assert equal_leaves(weight.to_sparse(), weight.to_sparse())
    assert not equal_leaves(weight.to_sparse(), (weight + 1).to_sparse())
    assert not equal_leaves(weight, weight.to_sparse())


def test_what_a_caller_does_to_the_result_stays_with_it() -> None:
    leaves, structure = pytree.tree_flatten(open_objects(Holder(torch.ones(2))))
    pytree.tree_unflatten(leaves, structure).notes.append("two")
    assert pytree.tree_unflatten(leaves, structure).notes == ["one"]


def test_an_object_without_tensors_has_no_leaves() -> None:
    leaves, structure = pytree.tree_flatten(open_objects(Holder(None)))
    assert leaves == []
    assert type(pytree.tree_unflatten(leaves, structure)) is Holder


def test_plain_values_are_no_objects() -> None:
    assert not any(is_object(value) for value in (1, "a", torch.ones(1), torch.float32, torch.nn.ReLU(), len, int))


X = torch.tensor([1.0, float("nan")])


class Plain:
    """An object without an equality of its own."""

    def __init__(self, **items: Any) -> None:
        vars(self).update(items)


@dataclass
class Output:
    """What a model may return."""

    x: Any
    rest: Any = None


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        (None, None, True),
        ((X, None), (X.clone(), None), True),
        ({"a": None, "b": [X]}, {"a": None, "b": [X.clone()]}, True),
        (Output(X), Output(X.clone()), True),
        (Output(X), Output(X + 1), False),
        (Plain(x=X, rest=None), Plain(x=X.clone(), rest=None), True),
        (Plain(x=X), Plain(x=X + 1), False),
        ((X, None), (X, X), False),
        ((X,), [X], False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, False),
        (1, 1.0, False),
        ("a", "a", True),
    ],
)
def test_the_same_value(ours: Any, theirs: Any, same: bool) -> None:
    assert same_value(ours, theirs) is same


class Entries(dict[str, Any]):
    """A mapping of a class that pytree does not know."""


def test_a_container_of_a_class_of_its_own_is_compared_and_not_opened() -> None:
    ours, theirs = Entries(x=X), Entries(x=X + 1)
    assert not is_object(ours)
    assert equal_leaves(ours, Entries(x=X.clone())) and not equal_leaves(ours, theirs)
    assert same_value([ours], [Entries(x=X.clone())]) and not same_value([ours], [theirs])


@pytest.mark.parametrize("inside", [Entries(a=torch.ones(2)), [Entries(a=torch.ones(2))], {torch.ones(2)}], ids=repr)
def test_a_container_of_a_class_of_its_own_in_an_object_is_no_constant(inside: Any) -> None:
    leaves = pytree.tree_leaves(open_objects(Holder(inside)))
    assert len(leaves) == 1 and isinstance(leaves[0], (Entries, set))


_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64)


@pytest.mark.parametrize("dtype", _FLOATS)
@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), float("-inf")])
def test_one_value_that_is_no_number_is_found_anywhere(dtype: torch.dtype, value: float) -> None:
    for place in range(70):
        tensor = torch.ones(70, dtype=dtype, requires_grad=True)
        tensor.data[place] = value
        assert all_finite(tensor) is (value == 0)
    assert all_finite(torch.zeros(0, dtype=dtype)) and all_finite(torch.zeros(2, dtype=torch.int64))

"""Example inputs are one object: their tensors, copies of them, and other values in their places."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from repl_fx.errors import BadInput
from repl_fx.running.example_inputs import ExampleInputs


def test_tensors_at_any_depth_are_changed_and_nothing_else() -> None:
    inputs = ExampleInputs.of(([torch.ones(3, 2)], True), {"more": {"mask": torch.zeros(4)}})
    assert [tuple(tensor.shape) for tensor in inputs.tensors] == [(3, 2), (4,)] and inputs.batch == 3
    doubled = inputs.map(lambda tensor: tensor * 2)
    assert torch.equal(doubled.args[0][0], torch.full((3, 2), 2.0)) and doubled.args[1] is True
    assert torch.equal(inputs.args[0][0], torch.ones(3, 2))


def test_what_a_forward_changes_are_copies() -> None:
    class Fills(nn.Module):
        def forward(self, x: Tensor, *, value: float) -> Tensor:
            return x.fill_(value)

    inputs = ExampleInputs.of((torch.zeros(2),), {"value": 3.0})
    assert torch.equal(inputs.fresh().passed_to(Fills()), torch.full((2,), 3.0))
    assert torch.equal(inputs.args[0], torch.zeros(2))


def test_a_tensor_that_is_taken_or_stands_twice_is_copied_there() -> None:
    once, twice, taken = torch.ones(1), torch.ones(2).requires_grad_(), torch.ones(3)
    given = ExampleInputs((once, [twice, taken]), {"more": twice})
    apart = given.apart([taken])
    assert apart.args[0] is once and apart.args[1][0] is twice
    copies = apart.args[1][1], apart.kwargs["more"]
    assert all(a is not b and torch.equal(a, b) for a, b in zip(copies, (taken, twice), strict=True))
    assert copies[1].requires_grad and copies[1].is_leaf and not copies[0].requires_grad


def test_inputs_without_a_size_have_a_batch_of_one() -> None:
    assert ExampleInputs.of().batch == ExampleInputs((torch.tensor(1.0), None)).batch == 1


def test_what_are_no_arguments_is_refused() -> None:
    with pytest.raises(BadInput, match="args is a tensor; give a tuple"):
        ExampleInputs.of(torch.ones(2))  # type: ignore[arg-type]

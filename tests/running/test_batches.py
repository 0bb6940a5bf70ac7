"""Calibration batches: what can be one, and a line for what cannot."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from repl_fx.errors import BadInput
from repl_fx.running.batches import Batches, Evaluation, loss_of

CPU = torch.device("cpu")
X = torch.arange(24.0).reshape(8, 3)


class Takes(nn.Module):
    """Any arguments."""

    def forward(self, *args: Tensor, **kwargs: Tensor) -> None:
        pass


def _batches(given: Any, *, paired: bool = False) -> Batches:
    return Batches(given, Takes(), paired=paired)


def test_a_batch_is_a_tensor_arguments_or_arguments_by_name() -> None:
    for given, args, kwargs in (
        (X, 1, []),
        ((X, 2), 2, []),
        ([X], 1, []),
        ({"x": X}, 0, ["x"]),
        (([X[0], X[1]] * 4,), 1, []),
    ):
        (batch,) = _batches([given])
        assert (len(batch.inputs.args), list(batch.inputs.kwargs), batch.samples) == (args, kwargs, 8)
        assert batch.targets is None


def test_with_a_loss_a_batch_is_a_pair() -> None:
    loader = DataLoader(TensorDataset(X, X[:, 0]), batch_size=5)
    first, second = _batches(loader, paired=True)
    assert torch.equal(first.inputs.args[0], X[:5]) and torch.equal(second.targets, X[5:, 0])
    assert (first.where, second.where, first.samples, second.samples) == ("batch 0", "batch 1", 5, 3)


def test_of_the_pairs_of_a_data_set_a_model_of_one_argument_gets_the_inputs() -> None:
    loader = DataLoader(TensorDataset(X, X[:, 0]), batch_size=8)
    for model, count in ((nn.Linear(3, 1), 1), (nn.Bilinear(3, 3, 1), 2), (Takes(), 2)):
        (batch,) = Batches(loader, model)
        assert len(batch.inputs.args) == count and torch.equal(batch.inputs.args[0], X)
    (batch,) = Batches([((X, X), X[:, 0])], nn.Linear(3, 1))
    assert len(batch.inputs.args) == 2


def test_functions_and_lists_last() -> None:
    made = _batches(lambda: iter([X]))
    assert made.lasting and len(list(made)) == len(list(made)) == 1
    assert _batches([X]).lasting and not _batches(iter([X])).lasting


@pytest.mark.parametrize(
    ("given", "paired", "said"),
    [
        (X, False, "batches is a tensor; give a list of batches, a DataLoader or a function that returns batches"),
        (3, False, "batches is an int; give a list"),
        ([], False, "the data hold too few samples to calibrate on, 0; give 8 or more"),
        ([X[:4], X[:3]], False, "the data hold too few samples to calibrate on, 7"),
        (["x"], False, "batch 0 is a str; give a tensor, a tuple of arguments, or a dict of them by name"),
        ([X, X.log().sub(X.log())], False, r"batch 1: tensor 0 of its inputs holds nan at \(0, 0\); give numbers"),
        ([X], True, r"batch 0 is a tensor; give pairs \(inputs, targets\) where there is a loss"),
        ([(X, X, X)], True, r"batch 0 is a tuple; give pairs \(inputs, targets\)"),
    ],
)
def test_what_is_no_batch_is_a_line(given: Any, paired: bool, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        list(_batches(given, paired=paired))


class Counts(nn.Module):
    """Adds up how often it ran, in one buffer in place and in another anew."""

    one: Tensor
    other: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("one", torch.zeros(()))
        self.register_buffer("other", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.one += 1
        self.other = self.other + 1
        return x + self.one + self.other + torch.rand(())


def _only(given: Any) -> Any:
    return next(iter(_batches([given])))


def test_each_run_begins_as_the_first() -> None:
    net = Counts()
    evaluation, batch, state = Evaluation(net), _only(X), torch.get_rng_state()
    made = [evaluation.outputs(net, batch) for _ in range(3)]
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])
    assert int(net.one) == int(net.other) == 0
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(batch.inputs.args[0], X)


def test_a_model_that_does_not_take_a_batch_is_a_line() -> None:
    net = nn.Linear(4, 2)
    with pytest.raises(BadInput, match=r"the model does not take batch 0, which is 8x3: .*mat1 and mat2 shapes can"):
        Evaluation(net).outputs(net, _only(X))


def _fails(outputs: Tensor, targets: Any) -> Tensor:
    raise ValueError("no such target")


def test_a_loss_that_is_none_is_a_line() -> None:
    batch = _only(X)
    assert loss_of(lambda outputs, targets: outputs.sum().reshape(1), X, batch).shape == ()
    with pytest.raises(BadInput, match="the loss fails on batch 0: no such target"):
        loss_of(_fails, X, batch)
    with pytest.raises(BadInput, match=r"the loss returns a tensor of shape \(8, 3\) on batch 0; return one number"):
        loss_of(lambda outputs, targets: outputs, X, batch)
    wrong: Any = max
    with pytest.raises(BadInput, match="the loss returns a float on batch 0"):
        loss_of(lambda outputs, targets: wrong(3.0, 1.0), X, batch)

"""Forwards around forwards."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repl_fx.graph.captured import share_tensors
from repl_fx.rewriting.in_place.wrapped_forward import WrappedForward
from tests.nets import MlpBlock


class _Tripled(WrappedForward):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return 3 * self.run(*args, **kwargs)


def test_forwards_stand_around_each_other_and_show_the_first_signature() -> None:
    block, x = MlpBlock(4), torch.randn(2, 4)
    expected = block(x)
    assert isinstance(_Tripled.put_on(block), _Tripled)
    assert torch.equal(block(x), 3 * expected)
    _Tripled.put_on(block)
    assert torch.equal(block(x), 3 * (3 * expected))
    assert list(inspect.signature(block.forward).parameters) == ["x"]
    assert block.forward.__doc__ == MlpBlock.forward.__doc__


def test_the_forward_of_a_copy_runs_the_copy() -> None:
    block, x = MlpBlock(4), torch.randn(2, 4)
    _Tripled.put_on(block)
    copied = share_tensors(block)
    expected = copied(x)
    block.fc2 = nn.Linear(8, 4)
    assert torch.equal(copied(x), expected)


def test_pickles_and_deep_copies_run_themselves() -> None:
    block, x = MlpBlock(4), torch.randn(2, 4)
    _Tripled.put_on(block)
    _Tripled.put_on(block)
    others: list[Any] = [pickle.loads(pickle.dumps(block)), copy.deepcopy(block)]
    for other in others:
        assert torch.equal(other(x), block(x))
        assert inspect.signature(other.forward) == inspect.signature(block.forward)
        found = _Tripled.on(other)
        assert found is not None and id(found.module) == id(other)
        with torch.no_grad():
            other.fc2.weight.zero_()
        assert not torch.equal(other(x), block(x))
    assert _Tripled.on(MlpBlock(4)) is None


def test_a_forward_without_a_signature_is_followed_too() -> None:
    block, x = MlpBlock(4), torch.randn(2, 4)
    vars(block)["forward"] = torch.neg
    _Tripled.put_on(block)
    assert torch.equal(block(x), -3 * x)


def test_modules_of_one_kind_have_forwards_of_one_code() -> None:
    blocks: list[Any] = [MlpBlock(4), MlpBlock(4)]
    one, other = blocks
    for block in (one, other):
        _Tripled.put_on(block)
    assert one.forward.__func__.__code__ is other.forward.__func__.__code__


def test_the_base_does_nothing_of_its_own() -> None:
    block = MlpBlock(4)
    WrappedForward.put_on(block)
    with pytest.raises(NotImplementedError):
        block(Tensor())

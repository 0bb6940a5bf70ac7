"""Values for a while: attributes of objects, and what functions set."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from repl_fx.running.meanwhile import attributes_set, forward_replaced, set_by


def test_attributes_have_the_values_of_before_behind_an_error() -> None:
    one, other = SimpleNamespace(at=1), SimpleNamespace(at=2)
    with pytest.raises(ValueError, match="no"), attributes_set([one, other], "at", 3):
        assert (one.at, other.at) == (3, 3)
        raise ValueError("no")
    assert (one.at, other.at) == (1, 2)


def test_none_is_set_where_one_has_no_such_attribute() -> None:
    one = SimpleNamespace(at=1)
    with pytest.raises(AttributeError), attributes_set([one, object()], "at", 3):
        pass
    assert one.at == 1


def test_a_parameter_takes_a_gradient_meanwhile() -> None:
    frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    with attributes_set([frozen], "requires_grad", True):
        assert frozen.requires_grad
    assert not frozen.requires_grad


def test_a_function_sets_back_what_it_set_behind_an_error() -> None:
    calls: list[int] = []
    with pytest.raises(ValueError, match="no"), set_by(calls.append, 2, 1):
        assert calls == [2]
        raise ValueError("no")
    assert calls == [2, 1]


def test_another_forward_is_taken_away_again() -> None:
    model, x = torch.nn.ReLU(), torch.ones(2)
    with forward_replaced(model, lambda x: 2 * x):
        assert torch.equal(model(x), 2 * x)
    assert "forward" not in vars(model)

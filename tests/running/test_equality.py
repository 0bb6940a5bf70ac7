"""What counts as the same value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from repl_fx.running.equality import same_value

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

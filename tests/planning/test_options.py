"""Options of another kind are refused in a line, before a model is captured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import repl_fx


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"every": "2"}, "every is '2'; it must be a whole number"),
        ({"every": 2.5}, "every is 2.5; it must be a whole number"),
        ({"seed": "x"}, "seed is 'x'; it must be a whole number"),
        ({"seed": 2**70}, "it must be a whole number"),
        ({"blocks": "1.fc"}, r"blocks is '1.fc'; give a list of names, such as \['blocks.1'\]"),
        ({"blocks": [1.5]}, r"blocks is \[1.5\]; give a list"),
        ({"ignore": "1"}, "ignore is '1'; give a list"),
        ({"ignore": [3]}, r"ignore is \[3\]; give a list"),
        ({"fixed": 3}, "fixed is 3; give names of dimensions"),
    ],
)
def test_values_of_another_kind(options: dict[str, Any], said: str) -> None:
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)))
    with pytest.raises(repl_fx.BadInput, match=said):
        repl_fx.transform(model, (torch.randn(2, 8),), surrogate="blend", **options)


def test_no_options_are_the_defaults() -> None:
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)))
    options: Any = {"blocks": None, "ignore": None, "settings": None}
    result = repl_fx.transform(model, (torch.randn(2, 8),), surrogate="blend", **options)
    assert [replaced.block for replaced in result.plan.replacements] == ["1"]

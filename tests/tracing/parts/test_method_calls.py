"""Calls of methods from outside of a module are noted."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from repl_fx.tracing.parts.method_calls import MethodCalls
from tests.tracing.parts.nets import Chosen


class Asked(nn.Module):
    """Has a method and a property; its forward calls the method too."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Chosen(nn.Linear(2, 2))

    def scaled(self, x: Tensor) -> Tensor:
        return 2 * x

    @property
    def width(self) -> int:
        return 2

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.scaled(x))  # type: ignore[no-any-return]


def test_methods_that_code_around_a_module_calls() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Sequential(Asked()), nn.Sequential(Asked())

        def forward(self, x: Tensor) -> Tensor:
            asked: Any = self.second.get_submodule("0")
            return asked.scaled(self.second(self.first(x))) * asked.width  # type: ignore[no-any-return]

    model = Outer()
    methods = MethodCalls(model)
    with methods.watching():
        model(torch.randn(3, 2))
    assert methods.found == {"second": ["0.scaled", "0.width"], "second.0": ["scaled", "width"]}
    assert sys.getprofile() is None or sys.getprofile() != methods._profile

"""What a trace changes of a model's state is noted, and named by the line that does so."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from repl_fx.errors import CaptureError
from repl_fx.tracing.capture import capture
from repl_fx.tracing.state_changes import changes_noted, forward_replaced


def test_the_line_is_named() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.count = 0

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            return x * self.count

    line = Counts.forward.__code__.co_firstlineno + 1
    with pytest.raises(CaptureError, match=rf"0\.count, .*test_state_changes\.py, line {line};"):
        capture(nn.Sequential(Counts()), (torch.randn(3, 8),))


def test_changes_of_a_forward_are_noted() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.kept, self.inner = x, nn.Identity()
            return x

    model, x = Net(), torch.ones(2)
    with changes_noted(model) as noted:
        model(x)
        del model.kept
    assert [(change.path, change.is_tensor) for change in noted.changes] == [("kept", True)]
    assert noted.replaced == ["inner", "inner"] and noted and not noted.unseen


def test_another_forward_is_taken_away_again() -> None:
    model, x = nn.ReLU(), torch.ones(2)
    with forward_replaced(model, lambda x: 2 * x):
        assert torch.equal(model(x), 2 * x)
    assert "forward" not in vars(model)

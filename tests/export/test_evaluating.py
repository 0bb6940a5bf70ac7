"""Graphs of models that have one in evaluation mode alone."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from repl_fx.errors import CaptureError
from repl_fx.export.evaluating import captured_in_evaluation
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.tracing.capture import capture


class Masked(nn.Module):
    """Masks that numpy draws in training, as speech models have them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer, self.drop = nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Dropout()

    def forward(self, values: Tensor, scale: float = 2.0) -> Tensor:
        if self.training:
            kept = np.random.random(values.shape[0]) > 0.5
            values = values * torch.from_numpy(kept).to(values)[:, None]
        made: Tensor = self.drop(self.layer(self.norm(values)))
        return made * scale


class Decided(nn.Module):
    """A way that the values choose, in either mode, by a number that it computes with."""

    def forward(self, values: Tensor) -> Tensor:
        total = values.sum().item()
        return values * total if total > 0 else values


def test_the_graph_is_that_of_evaluation_in_either_mode() -> None:
    model = Masked()
    model(torch.randn(4, 4))
    with pytest.raises(CaptureError):
        capture(model, (torch.randn(3, 4),))
    with patch.object(torch.export, "export", wraps=torch.export.export) as export:
        part = captured_in_evaluation(model.eval(), ExampleInputs((torch.randn(1, 4),)))
    # Its forward reads a mode, but one that never changes.
    assert export.call_count == 1
    assert list(part.inputs.kwargs) == ["values"] and part.inputs.kwargs["values"].shape == (2, 4)
    values = torch.randn(5, 4)
    for training in (False, True):
        assert torch.equal(part.graph_module.train(training)(values=values), model(values))


def test_a_model_without_a_graph_in_evaluation_is_refused() -> None:
    with pytest.raises(CaptureError, match="compared, or used otherwise"):
        captured_in_evaluation(Decided(), ExampleInputs((torch.ones(2, 4),)))

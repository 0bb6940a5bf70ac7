"""Models as they compute in evaluation mode, for one graph where training has none, as where numpy draws masks."""

from __future__ import annotations

from typing import Any

from torch import nn

from repl_fx.errors import CaptureError
from repl_fx.graph.signature import bind_arguments
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.tracing.capture import capture, check_capture, widen_batch
from repl_fx.tracing.parts.capture_parts import Part


class Evaluating(nn.Module):
    """A model that is in evaluation mode always, and takes its inputs by name.

    Args:
        model: any module, whose tensors are shared; it stays in evaluation mode.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.train(self.training)

    def train(self, mode: bool = True) -> Evaluating:
        """Set the mode of this module alone."""
        super().train(mode)
        self.model.eval()
        return self

    def forward(self, **given: Any) -> Any:
        """The model's outputs."""
        return self.model(**given)


def captured_in_evaluation(model: nn.Module, inputs: ExampleInputs) -> Part:
    """The graph of what a model computes in evaluation mode; the model stays in that mode.

    Raises:
        CaptureError: there is none, or it differs from the model.
    """
    evaluating = Evaluating(model)
    named = ExampleInputs((), bind_arguments(model, widen_batch(model, inputs)).arguments)
    gm = capture(evaluating, (), named.kwargs)
    check = check_capture(evaluating, gm, (), named.kwargs)
    if not check:
        raise CaptureError(type(model).__name__, check.differences)
    return Part("", gm, named)
